/* A constant table of 4 bytes times 4 to the power of nine, all of them different from zero, so that
 * they stand in the module as data: TABLE(seed) makes 256 KiB, TABLE_64(seed) 64 KiB, TABLE_16(seed)
 * 16 KiB. */
#define T0(n) ((n) * 2654435761u | 1u)
#define T1(n) T0(4 * (n)), T0(4 * (n) + 1), T0(4 * (n) + 2), T0(4 * (n) + 3)
#define T2(n) T1(4 * (n)), T1(4 * (n) + 1), T1(4 * (n) + 2), T1(4 * (n) + 3)
#define T3(n) T2(4 * (n)), T2(4 * (n) + 1), T2(4 * (n) + 2), T2(4 * (n) + 3)
#define T4(n) T3(4 * (n)), T3(4 * (n) + 1), T3(4 * (n) + 2), T3(4 * (n) + 3)
#define T5(n) T4(4 * (n)), T4(4 * (n) + 1), T4(4 * (n) + 2), T4(4 * (n) + 3)
#define TABLE_16K(n) T5(4 * (n)), T5(4 * (n) + 1), T5(4 * (n) + 2), T5(4 * (n) + 3)
#define TABLE_64K(n) TABLE_16K(4 * (n)), TABLE_16K(4 * (n) + 1), TABLE_16K(4 * (n) + 2), TABLE_16K(4 * (n) + 3)
#define TABLE_256K(n) TABLE_64K(4 * (n)), TABLE_64K(4 * (n) + 1), TABLE_64K(4 * (n) + 2), TABLE_64K(4 * (n) + 3)

/* Work for the processor alone: no memory beyond a few pages, no host functions. One kernel per
 * module, chosen by KERNEL_…; `result` is written so that the work can't be left out. */
#include <stdint.h>

volatile uint64_t result;

#if defined KERNEL_MIX
/* Integer arithmetic and rotations, as in hashes and ciphers. */
static uint64_t work(void) {
    uint64_t a = 0x9e3779b97f4a7c15u, b = 1;
    for (uint32_t i = 0; i < 60000000; i++) {
        a ^= b << 13 | b >> 51;
        b += a * 0xd6e8feb86659fd93u;
        a ^= a >> 32;
    }
    return a ^ b;
}
#elif defined KERNEL_MATMUL
/* Loads, stores and floating point in nested loops. */
#define N 300
static double x[N][N], y[N][N], z[N][N];
static uint64_t work(void) {
    for (int i = 0; i < N; i++) {
        for (int j = 0; j < N; j++) {
            x[i][j] = i + j;
            y[i][j] = i - j;
        }
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < N; i++) {
            for (int k = 0; k < N; k++) {
                double factor = x[i][k];
                for (int j = 0; j < N; j++) {
                    z[i][j] += factor * y[k][j];
                }
            }
        }
    }
    double sum = 0;
    for (int i = 0; i < N; i++) {
        sum += z[i][N - 1 - i];
    }
    return (uint64_t)(int64_t)sum;
}
#elif defined KERNEL_SIEVE
/* Bytes, branches and short loops. */
#define N 4000000
static unsigned char composite[N];
static uint64_t work(void) {
    uint64_t primes = 0;
    for (int round = 0; round < 10; round++) {
        for (uint32_t i = 2; i < N; i++) {
            if (composite[i] > round) {
                continue;
            }
            primes++;
            for (uint64_t j = (uint64_t)i * i; j < N; j += i) {
                composite[j] = round + 1;
            }
        }
    }
    return primes;
}
#elif defined KERNEL_FIB
/* Calls. */
__attribute__((noinline)) static uint32_t fib(uint32_t n) {
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}
static uint64_t work(void) {
    return fib(38);
}
#else
#error "define one of KERNEL_MIX, KERNEL_MATMUL, KERNEL_SIEVE, KERNEL_FIB"
#endif

__attribute__((export_name("_start"))) void start(void) {
    result = work();
}

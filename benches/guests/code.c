/* 350 KiB of which nearly all is code: the hardest module of its size for a compiler. 590 functions,
 * alike in shape and different in their constants, with loops, branches, calls and memory; the
 * input's first byte says which of them run. */
#include <stdint.h>
#include <stdio.h>

static uint32_t state[256];

#define FUNCTION(n)                                                                                \
    __attribute__((noinline)) static uint32_t step_##n(uint32_t a, uint32_t b, double d) {          \
        for (uint32_t i = 0; i < (a & 7) + 1; i++) {                                               \
            switch ((a ^ b ^ i) % 7) {                                                             \
            case 0: a = a * (2654435761u + n) + state[(b + n) & 255]; break;                       \
            case 1: b = (b << (n % 31 + 1) | b >> (31 - n % 31)) ^ a; break;                       \
            case 2: state[(a + 3 * n) & 255] ^= b + n; d += state[b & 255] * 0.5; break;           \
            case 3: d = d * 1.000001 + (double)(a % (n + 2)); break;                               \
            case 4:                                                                                \
                for (uint32_t j = 0; j < (b & 3); j++) {                                           \
                    state[(j * 7 + n) & 255] += (uint32_t)(int64_t)d + a * j;                      \
                }                                                                                  \
                break;                                                                             \
            case 5: a += (b > 1000 + n) ? b % (a | 1) : (a ^ 0x5bd1e995u) >> 3; break;             \
            default: b -= (uint32_t)((uint64_t)a * (b + n) >> 17); break;                          \
            }                                                                                      \
        }                                                                                          \
        d = d > 1e9 ? d / (n + 3) : d + n;                                                         \
        return a ^ b ^ (uint32_t)(int64_t)d;                                                       \
    }

#define ALL(X)                                                                                     \
    TEN(X, ) TEN(X, 1) TEN(X, 2) TEN(X, 3) TEN(X, 4) TEN(X, 5) TEN(X, 6) TEN(X, 7) TEN(X, 8)       \
    TEN(X, 9) TEN(X, 10) TEN(X, 11) TEN(X, 12) TEN(X, 13) TEN(X, 14) TEN(X, 15) TEN(X, 16)         \
    TEN(X, 17) TEN(X, 18) TEN(X, 19) TEN(X, 20) TEN(X, 21) TEN(X, 22) TEN(X, 23) TEN(X, 24)        \
    TEN(X, 25) TEN(X, 26) TEN(X, 27) TEN(X, 28) TEN(X, 29) TEN(X, 30) TEN(X, 31) TEN(X, 32)        \
    TEN(X, 33) TEN(X, 34) TEN(X, 35) TEN(X, 36) TEN(X, 37) TEN(X, 38) TEN(X, 39) TEN(X, 40)        \
    TEN(X, 41) TEN(X, 42) TEN(X, 43) TEN(X, 44) TEN(X, 45) TEN(X, 46) TEN(X, 47) TEN(X, 48)        \
    TEN(X, 49) TEN(X, 50) TEN(X, 51) TEN(X, 52) TEN(X, 53) TEN(X, 54) TEN(X, 55) TEN(X, 56)        \
    TEN(X, 57) TEN(X, 58)
#define TEN(X, n) X(n##0) X(n##1) X(n##2) X(n##3) X(n##4) X(n##5) X(n##6) X(n##7) X(n##8) X(n##9)

ALL(FUNCTION)

#define ENTRY(n) step_##n,
static uint32_t (*const steps[])(uint32_t, uint32_t, double) = {ALL(ENTRY)};

int main(void) {
    uint32_t first = (uint32_t)getchar(), result = first;
    for (uint32_t i = 0; i < 100; i++) {
        result = steps[(first + i) % (sizeof steps / sizeof steps[0])](result, i, result);
    }
    printf("%08x\n", result);
    return 0;
}

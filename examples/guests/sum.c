/* sum: adds the integers in its input, separated by white space, and prints the sum.
 *
 * ABI "command". Shows how a guest reports a mistake of its caller: a message on standard error and
 * a non-zero exit code. An execute call then answers 422 with the code, the message and the output
 * so far. No input at all is not a mistake: its sum is 0.
 *
 * Numbers are decimal, with an optional sign, and must fit in 64 bits, and so must the sum.
 *
 * Build:  scripts/build_guests.sh
 * Try:    wasm-wizard exec examples/guests/sum.wasm --input '1 2 3'
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* Standard input through a fixed buffer, a byte at a time. */
static unsigned char buffer[16 * 1024];
static ssize_t buffered, position;

/* The next byte of the input, -1 at its end, or -2 when reading failed. */
static int next_byte(void) {
    if (position == buffered) {
        position = 0;
        buffered = read(STDIN_FILENO, buffer, sizeof buffer);
        if (buffered <= 0) {
            ssize_t result = buffered;
            buffered = 0;
            return result == 0 ? -1 : -2;
        }
    }
    return buffer[position++];
}

static bool is_space(int c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Writes all of a text; there is nobody left to tell if standard error fails. */
static void put(int fd, const char *text) {
    size_t len = strlen(text);
    while (len > 0) {
        ssize_t written = write(fd, text, len);
        if (written < 0) {
            return;
        }
        text += written;
        len -= (size_t)written;
    }
}

/* The decimal form of a number, in a buffer that the next call reuses. */
static const char *decimal(int64_t number) {
    static char text[24];
    char *start = text + sizeof text - 1;
    /* The magnitude is unsigned, because that of INT64_MIN does not fit in an int64_t. */
    uint64_t magnitude = number < 0 ? 0 - (uint64_t)number : (uint64_t)number;
    *start = '\0';
    do {
        *--start = (char)('0' + magnitude % 10);
        magnitude /= 10;
    } while (magnitude > 0);
    if (number < 0) {
        *--start = '-';
    }
    return start;
}

/* Reports a mistake at the number with this ordinal, counted from 1. */
static int fail(int64_t ordinal, const char *what) {
    put(STDERR_FILENO, "sum: number ");
    put(STDERR_FILENO, decimal(ordinal));
    put(STDERR_FILENO, ": ");
    put(STDERR_FILENO, what);
    put(STDERR_FILENO, "\n");
    return 1;
}

int main(void) {
    int64_t sum = 0, ordinal = 0;
    int c = next_byte();
    for (;;) {
        while (is_space(c)) {
            c = next_byte();
        }
        if (c < 0) {
            break;
        }
        ordinal++;
        bool negative = c == '-';
        if (c == '-' || c == '+') {
            c = next_byte();
        }
        if (c < '0' || c > '9') {
            return fail(ordinal, "not an integer");
        }
        int64_t number = 0;
        for (; c >= '0' && c <= '9'; c = next_byte()) {
            /* Counted towards its sign, so that the smallest number fits. */
            int digit = negative ? -(c - '0') : c - '0';
            if (__builtin_mul_overflow(number, 10, &number) ||
                __builtin_add_overflow(number, digit, &number)) {
                return fail(ordinal, "does not fit in 64 bits");
            }
        }
        if (c >= 0 && !is_space(c)) {
            return fail(ordinal, "not an integer");
        }
        if (__builtin_add_overflow(sum, number, &sum)) {
            return fail(ordinal, "the sum does not fit in 64 bits");
        }
    }
    if (c == -2) {
        put(STDERR_FILENO, "sum: the input can't be read\n");
        return 1;
    }
    put(STDOUT_FILENO, decimal(sum));
    put(STDOUT_FILENO, "\n");
    return 0;
}

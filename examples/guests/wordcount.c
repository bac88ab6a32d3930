/* wordcount: counts the lines, words and bytes of its input, like wc(1).
 *
 * ABI "command". The answer is one line of JSON, for example
 * {"lines":1,"words":2,"bytes":12} for "hello there\n".
 *
 * Shows how to work through input of any size with a fixed buffer: memory use does not depend on
 * the input. Lines are counted as line feeds; words are separated by ASCII white space.
 *
 * Build:  scripts/build_guests.sh
 * Try:    wasm-wizard exec examples/guests/wordcount.wasm --input 'hello there'
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

static char buffer[16 * 1024];

static bool is_space(char c) {
    return c == ' ' || (c >= '\t' && c <= '\r');
}

/* Appends text to the answer, which ends at `end`; returns the new end. */
static char *append(char *end, const char *text) {
    size_t len = strlen(text);
    memcpy(end, text, len);
    return end + len;
}

static char *append_number(char *end, uint64_t number) {
    char digits[20];
    int count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    while (count > 0) {
        *end++ = digits[--count];
    }
    return end;
}

int main(void) {
    uint64_t lines = 0, words = 0, bytes = 0;
    bool in_word = false;
    for (;;) {
        ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
        if (got < 0) {
            return 1;
        }
        if (got == 0) {
            break;
        }
        bytes += (uint64_t)got;
        for (ssize_t i = 0; i < got; i++) {
            lines += buffer[i] == '\n';
            bool space = is_space(buffer[i]);
            words += !space && !in_word;
            in_word = !space;
        }
    }
    /* Three numbers of at most 20 digits and the words around them fit. */
    char answer[128], *end = answer;
    end = append(end, "{\"lines\":");
    end = append_number(end, lines);
    end = append(end, ",\"words\":");
    end = append_number(end, words);
    end = append(end, ",\"bytes\":");
    end = append_number(end, bytes);
    end = append(end, "}\n");
    return write(STDOUT_FILENO, answer, (size_t)(end - answer)) == end - answer ? 0 : 1;
}

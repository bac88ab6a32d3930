/* A module of the size that people upload: a C program that uses much of its C library (formatted
 * input and output, regular expressions, sorting, floating-point mathematics, wide characters,
 * dates, searches), with a table of data. It reports on its input: words, numbers, and a few
 * statistics of them. */
#include <complex.h>
#include <ctype.h>
#include <fnmatch.h>
#include <iconv.h>
#include <locale.h>
#include <math.h>
#include <regex.h>
#include <search.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <wchar.h>
#include <wctype.h>

#include "table.h"

static const volatile uint32_t table[] = {TABLE_16K(1), TABLE_16K(1000)};

enum { NUMBERS_MAX = 1000 };
static double numbers[NUMBERS_MAX];
static size_t count;
static char input[64 * 1024];

static int ascending(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static void read_numbers(void) {
    regex_t number;
    regmatch_t found;
    if (regcomp(&number, "[+-]?[0-9]+([.][0-9]+)?([eE][+-]?[0-9]+)?", REG_EXTENDED) != 0) {
        exit(1);
    }
    for (const char *at = input; count < NUMBERS_MAX && regexec(&number, at, 1, &found, 0) == 0;
         at += found.rm_eo) {
        numbers[count++] = strtod(at + found.rm_so, NULL);
    }
    regfree(&number);
}

static void words(void) {
    size_t distinct = 0;
    hcreate(1000);
    for (char *word = strtok(input, " \t\r\n"); word != NULL; word = strtok(NULL, " \t\r\n")) {
        ENTRY entry = {word, NULL};
        if (hsearch(entry, FIND) == NULL && hsearch(entry, ENTER) != NULL) {
            distinct++;
        }
        if (fnmatch("*[[:digit:]]*", word, 0) == 0) {
            continue;
        }
        wchar_t wide[64];
        size_t length = mbstowcs(wide, word, 63);
        for (size_t i = 0; length != (size_t)-1 && i < length; i++) {
            wide[i] = towupper(wide[i]);
        }
        if (length != (size_t)-1) {
            wide[length] = 0;
            printf("%-20ls\n", wide);
        }
    }
    printf("distinct words: %zu\n", distinct);
}

int main(int argc, char **argv) {
    setlocale(LC_ALL, "C.UTF-8");
    size_t length = fread(input, 1, sizeof input - 1, stdin);
    printf("%d %s: %zu bytes, table says %08x\n", argc, argc > 0 ? argv[0] : "", length,
           table[(unsigned char)input[0]]);
    read_numbers();
    qsort(numbers, count, sizeof numbers[0], ascending);
    long double sum = 0, logs = 0;
    double complex turned = 0;
    for (size_t i = 0; i < count; i++) {
        sum += numbers[i];
        logs += logl(fabsl((long double)numbers[i]) + 1);
        turned += cexp(I * numbers[i]) * cpow(numbers[i] + I, 0.5);
    }
    if (count > 0) {
        printf("numbers %zu, mean %.6Lf, median %g, mean of logarithms %Le, turned %a%+ai\n", count,
               sum / count, numbers[count / 2], logs / count, creal(turned), cimag(turned));
        printf("gamma %.17g, erf %.17g, bessel %.17g, %.17g, %.17g\n", tgamma(numbers[0] / 100),
               erf(numbers[0]), jn(2, numbers[0]), (double)tgammal(numbers[0] / 99), (double)powl(sum, 0.3L));
        printf("%.17g %.17g %.17g %.17g %.17g %.17g\n", sin(sum), atan2(sum, 3), asinh(sum), cbrt(sum),
               fma(sum, 2, 1), (double)lgammal(sum));
    }
    time_t when = (time_t)length * 86400;
    struct tm day;
    char text[128];
    if (gmtime_r(&when, &day) != NULL && strftime(text, sizeof text, "%A %d %B %Y, week %V", &day) > 0) {
        printf("%s\n", text);
    }
    strptime("2021-03-04 05:06:07", "%Y-%m-%d %H:%M:%S", &day);
    int year = 0;
    double half = 0;
    if (sscanf("1999 0.5", "%d %lf", &year, &half) == 2) {
        printf("%d %f %d\n", year, half, day.tm_yday);
    }
    iconv_t latin = iconv_open("ISO-8859-1", "UTF-8");
    if (latin != (iconv_t)-1) {
        char *from = text, *to = input + sizeof input / 2;
        size_t left = strlen(text), room = sizeof input / 2;
        printf("converted %zu\n", iconv(latin, &from, &left, &to, &room));
        iconv_close(latin);
    }
    words();
    return 0;
}

/* The guest that the figures are about: a C command on stdio that answers with its input, with as
 * much memory (1.4 MiB) and data (330 KiB) as a small real program has. */
#include <stdint.h>
#include <stdio.h>

#include "table.h"

static const volatile uint32_t table[] = {TABLE_256K(1), TABLE_64K(100), TABLE_16K(1000)};
static char input[1000 * 1024];

int main(void) {
    size_t length = fread(input, 1, sizeof input, stdin);
    /* The table must be looked at, or it would not be linked; no entry of it is zero. */
    if (length > 0 && table[(unsigned char)input[0]] == 0) {
        return 1;
    }
    return fwrite(input, 1, length, stdout) == length ? 0 : 1;
}

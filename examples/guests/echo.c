/* echo: writes its input to its output, byte for byte. The smallest useful guest.
 *
 * ABI "command": the request's body (or the `input` of an execute call) is standard input, and
 * standard output is the answer. Exit code 0 says that all went well.
 *
 * It uses read(2) and write(2) rather than stdio: no buffer to flush, and a tiny module.
 *
 * Build:  scripts/build_guests.sh
 * Try:    wasm-wizard exec examples/guests/echo.wasm --input 'hello'
 */
#include <unistd.h>

static char buffer[16 * 1024];

int main(void) {
    for (;;) {
        ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
        if (got < 0) {
            return 1;
        }
        if (got == 0) {
            return 0;
        }
        for (ssize_t done = 0; done < got;) {
            ssize_t put = write(STDOUT_FILENO, buffer + done, (size_t)(got - done));
            if (put < 0) {
                return 1;
            }
            done += put;
        }
    }
}

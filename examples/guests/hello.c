/* hello: greets ?name=… in HTML. The guest behind /fn/hello in the default configuration.
 *
 * ABI "wagi" (CGI over WASI): the request comes in environment variables, the answer goes to
 * standard output: header lines, an empty line, the body. What comes from the request is
 * percent-decoded and then escaped, so that it can't become markup.
 *
 * Build:  scripts/build_guests.sh
 * Try:    curl -k 'https://localhost:8443/fn/hello?name=you'
 */
#include <stdlib.h>

#include "web.h"

int main(void) {
    const char *query = getenv("QUERY_STRING");
    struct query_field field, name = {.value = "world", .value_len = 5};
    while (query != NULL && query_next(&query, &field)) {
        if (field.name_len == 4 && memcmp(field.name, "name", 4) == 0 && field.value_len > 0) {
            name = field;
            break;
        }
    }
    out_text("Content-Type: text/html; charset=utf-8\n\n<!doctype html>\n<title>Hello</title>\n<p>Hello, ");
    out_query_text(name.value, name.value_len);
    out_text("!</p>\n");
    return out_flush() ? 0 : 1;
}

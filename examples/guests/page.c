/* page: an HTML page about the request that asked for it.
 *
 * ABI "wagi" (CGI over WASI). Shows the method, the path, each field of the query string, the
 * request's headers (HTTP_* variables) and the length of its body. Everything that came from the
 * request is escaped. Answers 405 to methods other than GET, HEAD and POST, to show how to set a
 * status.
 *
 * Build:  scripts/build_guests.sh
 * Use:    a route with `abi: wagi` and this module, then
 *         curl -k 'https://localhost:8443/page?a=1&b=%3Cb%3E'
 */
#include <stdlib.h>

#include "web.h"

extern char **environ;

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL ? value : "";
}

static void out_row(const char *name) {
    out_text("<tr><th>");
    out_escaped(name);
    out_text("<td>");
    out_escaped(variable(name));
    out_text("\n");
}

static void out_query(const char *query) {
    struct query_field field;
    out_text("<h2>Query</h2>\n<table>\n");
    while (query_next(&query, &field)) {
        out_text("<tr><th>");
        out_query_text(field.name, field.name_len);
        out_text("<td>");
        out_query_text(field.value, field.value_len);
        out_text("\n");
    }
    out_text("</table>\n");
}

/* Writes HTTP_ACCEPT_LANGUAGE=de as accept-language and de. */
static void out_headers(void) {
    out_text("<h2>Headers</h2>\n<table>\n");
    for (char **entry = environ; *entry != NULL; entry++) {
        const char *c = *entry;
        if (strncmp(c, "HTTP_", 5) != 0) {
            continue;
        }
        out_text("<tr><th>");
        for (c += 5; *c != '\0' && *c != '='; c++) {
            out_escaped_char(*c == '_' ? '-' : *c >= 'A' && *c <= 'Z' ? (char)(*c + 'a' - 'A') : *c);
        }
        out_text("<td>");
        out_escaped(*c == '=' ? c + 1 : c);
        out_text("\n");
    }
    out_text("</table>\n");
}

/* Reads the body to its end and writes its length. */
static bool out_body_length(void) {
    static char buffer[4096];
    unsigned long length = 0;
    ssize_t got;
    while ((got = read(STDIN_FILENO, buffer, sizeof buffer)) > 0) {
        length += (unsigned long)got;
    }
    char digits[20];
    size_t count = 0;
    do {
        digits[count++] = (char)('0' + length % 10);
        length /= 10;
    } while (length > 0);
    out_text("<h2>Body</h2>\n<p>");
    while (count > 0) {
        out_char(digits[--count]);
    }
    out_text(" bytes</p>\n");
    return got == 0;
}

int main(void) {
    const char *method = variable("REQUEST_METHOD");
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0 && strcmp(method, "POST") != 0) {
        out_text("Status: 405 Method Not Allowed\nAllow: GET, HEAD, POST\n"
                 "Content-Type: text/plain\n\nmethod not allowed\n");
        return out_flush() ? 0 : 1;
    }
    out_text("Content-Type: text/html; charset=utf-8\nCache-Control: no-store\n\n"
             "<!doctype html>\n<title>Your request</title>\n<h1>Your request</h1>\n<table>\n");
    out_row("REQUEST_METHOD");
    out_row("SCRIPT_NAME");
    out_row("PATH_INFO");
    out_row("QUERY_STRING");
    out_row("SERVER_PROTOCOL");
    out_text("</table>\n");
    out_query(variable("QUERY_STRING"));
    out_headers();
    bool read_all = out_body_length();
    return out_flush() && read_all ? 0 : 1;
}

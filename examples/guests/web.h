/* web.h: what a small CGI program in C needs. Included by hello.c and page.c; copy it and go on.
 *
 * Output is collected in a buffer and goes out in few writes; call out_flush() before returning
 * from main. */
#ifndef WEB_H
#define WEB_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

static char out_buffer[8 * 1024];
static size_t out_len;
static bool out_failed;

/* Writes what was collected. Returns false when any write so far failed. */
static bool out_flush(void) {
    for (size_t done = 0; done < out_len && !out_failed;) {
        ssize_t written = write(STDOUT_FILENO, out_buffer + done, out_len - done);
        if (written < 0) {
            out_failed = true;
        } else {
            done += (size_t)written;
        }
    }
    out_len = 0;
    return !out_failed;
}

static void out_char(char c) {
    if (out_len == sizeof out_buffer) {
        out_flush();
    }
    out_buffer[out_len++] = c;
}

static void out_text(const char *text) {
    while (*text != '\0') {
        out_char(*text++);
    }
}

/* A character of text inside HTML, or inside a quoted attribute. */
static void out_escaped_char(char c) {
    switch (c) {
    case '&': out_text("&amp;"); break;
    case '<': out_text("&lt;"); break;
    case '>': out_text("&gt;"); break;
    case '"': out_text("&quot;"); break;
    case '\'': out_text("&#39;"); break;
    default: out_char(c);
    }
}

__attribute__((unused)) static void out_escaped(const char *text) {
    while (*text != '\0') {
        out_escaped_char(*text++);
    }
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Writes part of a query string as text inside HTML: decoded ("+" is a space, "%41" is "A"; a "%"
 * without two hexadecimal digits stays as it is), then escaped. Decoded control characters are
 * written as "?". */
static void out_query_text(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%' && len - i > 2) {
            int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
            if (high >= 0 && low >= 0) {
                c = (unsigned char)(high * 16 + low);
                i += 2;
            }
        }
        out_escaped_char(c < 0x20 || c == 0x7f ? '?' : (char)c);
    }
}

/* One `name=value` of a query string, neither part decoded. */
struct query_field {
    const char *name, *value;
    size_t name_len, value_len;
};

/* Takes the next field off a query string; false when there is none left. */
static bool query_next(const char **query, struct query_field *field) {
    while (**query == '&') {
        ++*query;
    }
    if (**query == '\0') {
        return false;
    }
    size_t len = strcspn(*query, "&");
    const char *equals = memchr(*query, '=', len);
    field->name = *query;
    field->name_len = equals != NULL ? (size_t)(equals - *query) : len;
    field->value = equals != NULL ? equals + 1 : *query + len;
    field->value_len = equals != NULL ? len - field->name_len - 1 : 0;
    *query += len;
    return true;
}

#endif

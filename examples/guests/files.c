/* files: shows a file or lists a directory of those it was given.
 *
 * ABI "command". The input is a path, for example "/words.txt". A file is answered as it is, a
 * directory with a line for each entry: its size and its name, directories with a slash.
 *
 * Shows how to read files: with the C library, as anywhere. A guest finds the directory that its
 * operator has named as "/", and nothing can be written there.
 *
 * Build:  scripts/build_guests.sh
 * Try:    wasm-wizard exec examples/guests/files.wasm --files examples --input /guests
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char buffer[16 * 1024];

static int fail(const char *path) {
    fprintf(stderr, "files: %s: %s\n", path, strerror(errno));
    return 1;
}

static int list(const char *path) {
    DIR *directory = opendir(path);
    if (!directory) return fail(path);
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
        struct stat stat;
        if (fstatat(dirfd(directory), entry->d_name, &stat, 0) != 0) return fail(entry->d_name);
        printf("%8lld %s%s\n", (long long)stat.st_size, entry->d_name,
               S_ISDIR(stat.st_mode) ? "/" : "");
    }
    closedir(directory);
    return fflush(stdout) != 0;
}

static int show(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return fail(path);
    size_t len;
    while ((len = fread(buffer, 1, sizeof buffer, file)) > 0) {
        if (fwrite(buffer, 1, len, stdout) != len) return 1;
    }
    if (ferror(file)) return fail(path);
    fclose(file);
    return fflush(stdout) != 0;
}

int main(void) {
    char path[4096];
    size_t len = fread(path, 1, sizeof path - 1, stdin);
    while (len > 0 && (path[len - 1] == '\n' || path[len - 1] == '\r')) len--;
    path[len] = '\0';
    struct stat stat_of_path;
    if (stat(path, &stat_of_path) != 0) return fail(path);
    return S_ISDIR(stat_of_path.st_mode) ? list(path) : show(path);
}

/* Walks through what a C library does with files, and prints what each step answers.
 *
 * The tree: /a/file with "hello, file\n", /a/b/, /many/0 to /many/99.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char buffer[1024];

static void say(const char *what, int worked) {
    printf("%s: %s\n", what, worked ? "ok" : strerror(errno));
    errno = 0;
}

static void say_number(const char *what, long long number) {
    printf("%s: %lld\n", what, number);
}

static void reading(void) {
    FILE *file = fopen("/a/file", "r");
    say("fopen r", file != NULL);
    say("fgets", fgets(buffer, sizeof buffer, file) != NULL);
    printf("line: %s", buffer);
    say_number("ftell", ftell(file));
    say("fseek", fseek(file, -5, SEEK_END) == 0);
    say("fgets", fgets(buffer, sizeof buffer, file) != NULL);
    printf("line: %s", buffer);
    rewind(file);
    say_number("getc", getc(file));
    fclose(file);

    int fd = open("a/../a//file", O_RDONLY);
    say("open relative", fd >= 0);
    memset(buffer, 0, sizeof buffer);
    say_number("pread", pread(fd, buffer, 4, 7));
    printf("pread: %s\n", buffer);
    say_number("lseek", lseek(fd, 0, SEEK_CUR));
    say_number("lseek", lseek(fd, 100, SEEK_SET));
    say_number("read at the end", read(fd, buffer, 10));
    say("lseek before the start", lseek(fd, -1, SEEK_SET) >= 0);
    close(fd);
    say("read closed", read(fd, buffer, 10) >= 0);
}

static void listing(void) {
    DIR *directory = opendir("/many");
    say("opendir", directory != NULL);
    int count = 0, dots = 0;
    long long sum = 0;
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        count++;
        if (entry->d_name[0] == '.') dots++;
        else sum += atoi(entry->d_name);
    }
    say_number("entries", count);
    say_number("dots", dots);
    say_number("sum of names", sum);
    rewinddir(directory);
    entry = readdir(directory);
    say("rewinddir", entry && strcmp(entry->d_name, ".") == 0 && entry->d_type == DT_DIR);
    closedir(directory);
    say("opendir of a file", opendir("/a/file") != NULL);
    struct dirent **names;
    say_number("scandir", scandir("/a", &names, NULL, alphasort));
}

static void stating(void) {
    struct stat file, directory, by_fd;
    say("stat file", stat("/a/file", &file) == 0);
    say_number("size", file.st_size);
    say("is a file", S_ISREG(file.st_mode));
    say_number("mtime", file.st_mtim.tv_sec);
    say("stat directory", stat("/a/b", &directory) == 0);
    say("is a directory", S_ISDIR(directory.st_mode));
    say("inodes differ", file.st_ino != directory.st_ino);
    int fd = open("/a/file", O_RDONLY);
    say("fstat", fstat(fd, &by_fd) == 0 && by_fd.st_ino == file.st_ino);
    say("lstat", lstat("/a/file", &by_fd) == 0);
    say("access", access("/a/file", R_OK) == 0);
    say("fsync", fsync(fd) == 0);
    say("isatty", isatty(fd));
    say("ftruncate", ftruncate(fd, 0) == 0);
    close(fd);
    say("stat /", stat("/", &directory) == 0);
    say("stat .", stat(".", &directory) == 0);
    say("readlink", readlink("/a/file", buffer, sizeof buffer) >= 0);
}

static void failing(void) {
    say("open missing", open("/missing", O_RDONLY) >= 0);
    say("open /etc/passwd", open("/etc/passwd", O_RDONLY) >= 0);
    say("open up and out", open("/../etc/passwd", O_RDONLY) >= 0);
    say("open up and out relative", open("../etc/passwd", O_RDONLY) >= 0);
    say("open through a file", open("/a/file/x", O_RDONLY) >= 0);
    say("fopen w", fopen("/a/file", "w") != NULL);
    say("fopen a", fopen("/a/file", "a") != NULL);
    say("fopen r+", fopen("/a/file", "r+") != NULL);
    say("fopen new", fopen("/new", "w") != NULL);
    say("open O_EXCL", open("/a/file", O_RDONLY | O_CREAT | O_EXCL, 0600) >= 0);
    say("open directory to write", open("/a", O_RDWR) >= 0);
    say("open file as directory", open("/a/file", O_RDONLY | O_DIRECTORY) >= 0);
    say("mkdir", mkdir("/new", 0700) == 0);
    say("unlink", unlink("/a/file") == 0);
    say("rmdir", rmdir("/a/b") == 0);
    say("rename", rename("/a/file", "/a/other") == 0);
    say("link", link("/a/file", "/a/other") == 0);
    say("symlink", symlink("/a/file", "/a/other") == 0);
    int count = 0;
    while (open("/a/file", O_RDONLY) >= 0) count++;
    say("open without end", 0);
    say("many are open", count > 100 && count < 1000);
}

int main(void) {
    reading();
    listing();
    stating();
    failing();
    return 0;
}

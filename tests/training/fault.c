/* Preloaded into a process: from its n-th on, or only its n-th, the operations that write below a folder fail.
   armed by `arm(folder, number, errno, once)`; `count()` says how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096];
static volatile long number, seen;
static int error, once;

void arm(const char *below, long first, int code, int only) {
    strncpy(folder, below, sizeof folder - 1);
    seen = 0; number = first; error = code; once = only;
}
long count(void) { return seen; }

static int below(const char *path) { return *folder && path && !strncmp(path, folder, strlen(folder)); }
static int below_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}
static int fails(int here) {
    if (!here) return 0;
    long n = __sync_add_and_fetch(&seen, 1);
    if (!number || (once ? n != number : n < number)) return 0;
    errno = error;
    return 1;
}
static int writes(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC); }
#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define MODE mode_t mode = 0; if (flags & (O_CREAT | 020000000)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); }

int open(const char *p, int flags, ...) { MODE if (writes(flags) && fails(below(p))) return -1; return REAL(int, open, const char *, int, ...)(p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE if (writes(flags) && fails(below(p))) return -1; return REAL(int, open64, const char *, int, ...)(p, flags, mode); }
int openat(int d, const char *p, int flags, ...) { MODE if (writes(flags) && fails(below(p) || (*p != '/' && below_fd(d)))) return -1; return REAL(int, openat, int, const char *, int, ...)(d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...) { MODE if (writes(flags) && fails(below(p) || (*p != '/' && below_fd(d)))) return -1; return REAL(int, openat64, int, const char *, int, ...)(d, p, flags, mode); }
ssize_t write(int fd, const void *b, size_t n) { if (fails(below_fd(fd))) return -1; return REAL(ssize_t, write, int, const void *, size_t)(fd, b, n); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { if (fails(below_fd(fd))) return -1; return REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { if (fails(below_fd(fd))) return -1; return REAL(ssize_t, writev, int, const struct iovec *, int)(fd, v, n); }
int ftruncate(int fd, off_t n) { if (fails(below_fd(fd))) return -1; return REAL(int, ftruncate, int, off_t)(fd, n); }
int ftruncate64(int fd, off64_t n) { if (fails(below_fd(fd))) return -1; return REAL(int, ftruncate64, int, off64_t)(fd, n); }
int fsync(int fd) { if (fails(below_fd(fd))) return -1; return REAL(int, fsync, int)(fd); }
int mkdir(const char *p, mode_t m) { if (fails(below(p))) return -1; return REAL(int, mkdir, const char *, mode_t)(p, m); }
int rename(const char *a, const char *b) { if (fails(below(b))) return -1; return REAL(int, rename, const char *, const char *)(a, b); }
int unlink(const char *p) { if (fails(below(p) && error == EROFS)) return -1; return REAL(int, unlink, const char *)(p); }
int unlinkat(int d, const char *p, int f) { if (fails((below(p) || (*p != '/' && below_fd(d))) && error == EROFS)) return -1; return REAL(int, unlinkat, int, const char *, int)(d, p, f); }
int rmdir(const char *p) { if (fails(below(p) && error == EROFS)) return -1; return REAL(int, rmdir, const char *)(p); }

/* Faults in the writing system calls of a process, below one folder: preloaded, and idle until it is armed.

   Every call that changes a file or a folder below the root is counted: writes, truncations, syncs, creations, renames,
   links, removals and new folders. At the n-th, or from there on, one of the modes below happens. Each counted call can
   be traced to a file, one line of tab-separated words: number, call, path, second path. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum mode { NONE, KILL_BEFORE, KILL_AFTER, TORN, FAIL_ONCE, FAIL_FROM, STOP, LIE, JUMP };
enum outcome { GO_ON, FAIL, DIE_AFTER, TEAR, DENY };

static char root[PATH_MAX];
static atomic_long count;
static atomic_long jump; /* seconds that the clock is ahead */
static long place;
static int mode, error_number, ahead, trace = -1;

void faults_arm(const char *folder, long n, int how, int error, int seconds) {
    snprintf(root, sizeof root, "%s", folder);
    place = n, mode = how, error_number = error, ahead = seconds;
    atomic_store(&count, 0);
}
void faults_trace(const char *path) {
    trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}
long faults_count(void) { return atomic_load(&count); }

static int inside(const char *path) {
    size_t length = strlen(root);
    return length && !strncmp(path, root, length) && (!path[length] || path[length] == '/') &&
           strncmp(path + length, "/logs", 5);
}
static int of_descriptor(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}
static void at(int folder, const char *name, char *path) {
    path[0] = 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    if (folder == AT_FDCWD ? !getcwd(path, PATH_MAX / 2) : !of_descriptor(folder, path)) path[0] = 0;
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
}
static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}
static enum outcome counted(const char *call, const char *path, const char *second) {
    if (!root[0] || !(inside(path) || (second && inside(second)))) return GO_ON;
    long n = atomic_fetch_add(&count, 1) + 1;
    if (trace >= 0) {
        char line[2 * PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\n", n, call, path, second ? second : "");
        syscall(SYS_write, trace, line, length);
    }
    if (n < place) return GO_ON;
    if (mode == FAIL_FROM) {
        /* what frees room, or waits for the disk, still works on a full one */
        int frees = !strcmp(call, "unlink") || !strcmp(call, "rmdir") || !strcmp(call, "sync");
        if (!frees) errno = error_number;
        return frees ? GO_ON : FAIL;
    }
    if (n > place) return GO_ON;
    switch (mode) {
    case KILL_BEFORE: die(); return GO_ON;
    case KILL_AFTER: return DIE_AFTER;
    case TORN:
        if (strcmp(call, "write")) die();
        return TEAR;
    case FAIL_ONCE: errno = error_number; return FAIL;
    case LIE: return strcmp(call, "link") ? GO_ON : DENY; /* NFS: it was made, and the answer was lost */
    case STOP: raise(SIGSTOP); return GO_ON;
    case JUMP: atomic_store(&jump, ahead); return GO_ON;
    default: return GO_ON;
    }
}

#define REAL(type, name, ...)                                                                                          \
    static type (*real)(__VA_ARGS__);                                                                                  \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name);
#define END(result)                                                                                                    \
    if (outcome == DIE_AFTER) die();                                                                                   \
    if (outcome == DENY && !result) {                                                                                  \
        errno = error_number;                                                                                          \
        return -1;                                                                                                     \
    }                                                                                                                  \
    return result;
#define OF_DESCRIPTOR(call)                                                                                            \
    char path[PATH_MAX];                                                                                               \
    enum outcome outcome = root[0] && of_descriptor(file, path) ? counted(call, path, NULL) : GO_ON;                   \
    if (outcome == FAIL) return -1;
#define OF_PATH(call, folder, name)                                                                                    \
    char path[PATH_MAX];                                                                                               \
    at(folder, name, path);                                                                                            \
    enum outcome outcome = counted(call, path, NULL);                                                                  \
    if (outcome == FAIL) return -1;
#define OF_PATHS(call, folder, name, other, to)                                                                        \
    char path[PATH_MAX], second[PATH_MAX];                                                                             \
    at(folder, name, path), at(other, to, second);                                                                     \
    enum outcome outcome = counted(call, path, second);                                                                \
    if (outcome == FAIL) return -1;

ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t)
    OF_DESCRIPTOR("write")
    if (outcome == TEAR) real(file, data, size / 2), die();
    ssize_t result = real(file, data, size);
    if (outcome == DIE_AFTER) die();
    return result;
}
#define PWRITE(name)                                                                                                   \
    ssize_t name(int file, const void *data, size_t size, off_t offset) {                                              \
        REAL(ssize_t, name, int, const void *, size_t, off_t)                                                          \
        OF_DESCRIPTOR("write")                                                                                         \
        if (outcome == TEAR) real(file, data, size / 2, offset), die();                                                \
        ssize_t result = real(file, data, size, offset);                                                               \
        if (outcome == DIE_AFTER) die();                                                                               \
        return result;                                                                                                 \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
#define ON_DESCRIPTOR(name, call)                                                                                      \
    int name(int file) {                                                                                               \
        REAL(int, name, int)                                                                                           \
        OF_DESCRIPTOR(call)                                                                                            \
        int result = real(file);                                                                                       \
        END(result)                                                                                                    \
    }
ON_DESCRIPTOR(fsync, "sync")
ON_DESCRIPTOR(fdatasync, "sync")
#define TRUNCATE(name)                                                                                                 \
    int name(int file, off_t size) {                                                                                   \
        REAL(int, name, int, off_t)                                                                                    \
        OF_DESCRIPTOR("truncate")                                                                                      \
        int result = real(file, size);                                                                                 \
        END(result)                                                                                                    \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)
int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *)
    OF_PATHS("rename", AT_FDCWD, from, AT_FDCWD, to)
    int result = real(from, to);
    END(result)
}
int renameat(int a, const char *from, int b, const char *to) {
    REAL(int, renameat, int, const char *, int, const char *)
    OF_PATHS("rename", a, from, b, to)
    int result = real(a, from, b, to);
    END(result)
}
int link(const char *from, const char *to) {
    REAL(int, link, const char *, const char *)
    OF_PATHS("link", AT_FDCWD, from, AT_FDCWD, to)
    int result = real(from, to);
    END(result)
}
int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int)
    OF_PATHS("link", a, from, b, to)
    int result = real(a, from, b, to, flags);
    END(result)
}
int unlink(const char *name) {
    REAL(int, unlink, const char *)
    OF_PATH("unlink", AT_FDCWD, name)
    int result = real(name);
    END(result)
}
int unlinkat(int folder, const char *name, int flags) {
    REAL(int, unlinkat, int, const char *, int)
    OF_PATH(flags ? "rmdir" : "unlink", folder, name)
    int result = real(folder, name, flags);
    END(result)
}
int rmdir(const char *name) {
    REAL(int, rmdir, const char *)
    OF_PATH("rmdir", AT_FDCWD, name)
    int result = real(name);
    END(result)
}
int mkdir(const char *name, mode_t rights) {
    REAL(int, mkdir, const char *, mode_t)
    OF_PATH("mkdir", AT_FDCWD, name)
    int result = real(name, rights);
    END(result)
}
int mkdirat(int folder, const char *name, mode_t rights) {
    REAL(int, mkdirat, int, const char *, mode_t)
    OF_PATH("mkdir", folder, name)
    int result = real(folder, name, rights);
    END(result)
}
#define OPEN(name)                                                                                                     \
    int name(const char *file, int flags, ...) {                                                                       \
        REAL(int, name, const char *, int, ...)                                                                        \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t rights = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                    \
        va_end(more);                                                                                                  \
        if (!(flags & O_CREAT)) return real(file, flags, rights);                                                      \
        OF_PATH("create", AT_FDCWD, file)                                                                              \
        int result = real(file, flags, rights);                                                                        \
        if (outcome == DIE_AFTER) die();                                                                               \
        return result;                                                                                                 \
    }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                                                                                   \
    int name(int folder, const char *file, int flags, ...) {                                                           \
        REAL(int, name, int, const char *, int, ...)                                                                   \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode_t rights = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;                                    \
        va_end(more);                                                                                                  \
        if (!(flags & O_CREAT)) return real(folder, file, flags, rights);                                              \
        OF_PATH("create", folder, file)                                                                                \
        int result = real(folder, file, flags, rights);                                                                \
        if (outcome == DIE_AFTER) die();                                                                               \
        return result;                                                                                                 \
    }
OPENAT(openat)
OPENAT(openat64)
int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *)
    int result = real(clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += atomic_load(&jump);
    return result;
}

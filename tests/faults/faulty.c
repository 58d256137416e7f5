/* Loaded before libc (LD_PRELOAD), this catches the calls of a process on files in one directory. It counts them,
   makes them fail, cuts writes short, runs out of space, kills the process at one of them, or logs them.

   It catches only calls through libc's symbols (safetensors makes a system call of its own to rename). */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { WATCH, FAIL, KILL_BEFORE, KILL_AMID, KILL_AFTER, SHORT };
enum { FILES = 1024 };

static char directory[PATH_MAX]; /* empty: catch nothing */
static int action, code, reserves = 1, log_file = -1;
static long first, last, calls; /* act on the calls from first to last */
static long long room = -1;     /* bytes until the disk is full; negative: no limit */
static char *names[FILES];      /* of the open files */
static char reserved[FILES];    /* files whose space was reserved */

void faulty_set(const char *path, int what, long from, long to, int error, long long bytes, int can_reserve,
                int log)
{
    snprintf(directory, sizeof directory, "%s", path);
    action = what, first = from, last = to, code = error, room = bytes, reserves = can_reserve, log_file = log;
    calls = 0;
}

long faulty_calls(void) { return calls; }

#define REAL(name) (*(__typeof__(name) *)real(#name))
static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static int under(const char *path)
{
    size_t length = strlen(directory);
    return length && path && !strncmp(path, directory, length);
}

static int open_under(int fd) { return *directory && fd >= 0 && fd < FILES && names[fd]; }

/* Count a call, and return whether to act on it. Kill the process here if it must die before the call. */
static int met(void)
{
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    int now = number >= first && number <= last;
    if (now && action == KILL_BEFORE)
        raise(SIGKILL);
    return now;
}

static void done(int now)
{
    if (now && (action == KILL_AFTER || action == KILL_AMID))
        raise(SIGKILL);
}

static void write_down(const char *what, const char *path, const char *other, long long at, const void *data,
                       size_t length)
{
    char head[2 * PATH_MAX + 64];
    if (log_file < 0)
        return;
    int size = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%zu\n", what, path, other, at, length);
    struct iovec parts[] = {{head, size}, {(void *)data, data ? length : 0}};
    if (REAL(writev)(log_file, parts, 2) < size)
        abort();
}

static int note_open(int fd, const char *path, int flags)
{
    if (fd >= 0 && fd < FILES) {
        free(names[fd]);
        names[fd] = strdup(path), reserved[fd] = 0;
        if (flags & (O_CREAT | O_TRUNC))
            write_down(flags & O_TRUNC ? "create" : "open", path, "", 0, NULL, 0);
    }
    return fd;
}

/* A call that was not caught may have renamed a file: look its name up when it is closed. */
static void note_close(int fd)
{
    char link[64], now[PATH_MAX] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (REAL(readlink)(link, now, sizeof now - 1) > 0 && strcmp(now, names[fd]) && under(now)
        && !strstr(now, " (deleted)"))
        write_down("rename", names[fd], now, 0, NULL, 0);
    free(names[fd]);
    names[fd] = NULL;
}

#define OPEN(name, parameters, arguments)                                                                         \
    int name parameters                                                                                           \
    {                                                                                                             \
        int mode = 0;                                                                                             \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                                    \
            va_list list;                                                                                         \
            va_start(list, flags);                                                                                \
            mode = va_arg(list, int);                                                                             \
            va_end(list);                                                                                         \
        }                                                                                                         \
        if (!under(path))                                                                                         \
            return REAL(name) arguments;                                                                          \
        int now = met();                                                                                          \
        if (now && action == FAIL)                                                                                \
            return errno = code, -1;                                                                              \
        int fd = note_open(REAL(name) arguments, path, flags);                                                    \
        done(now);                                                                                                \
        return fd;                                                                                                \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

#define COPY(name)                                                                                                \
    int name(int fd, int command, ...)                                                                            \
    {                                                                                                             \
        va_list list;                                                                                             \
        va_start(list, command);                                                                                  \
        void *argument = va_arg(list, void *);                                                                    \
        va_end(list);                                                                                             \
        int result = REAL(name)(fd, command, argument);                                                           \
        if (open_under(fd) && (command == F_DUPFD || command == F_DUPFD_CLOEXEC))                                 \
            note_open(result, names[fd], 0);                                                                      \
        return result;                                                                                            \
    }
COPY(fcntl)
COPY(fcntl64)

#define FOPEN(name)                                                                                               \
    FILE *name(const char *path, const char *mode)                                                                \
    {                                                                                                             \
        if (!under(path))                                                                                         \
            return REAL(name)(path, mode);                                                                        \
        int now = met();                                                                                          \
        if (now && action == FAIL)                                                                                \
            return errno = code, NULL;                                                                            \
        FILE *file = REAL(name)(path, mode);                                                                      \
        if (file)                                                                                                 \
            note_open(fileno(file), path, *mode == 'w' ? O_TRUNC : 0);                                            \
        done(now);                                                                                                \
        return file;                                                                                              \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* As in Linux, a close that fails does close the file. */
#define CLOSE(name, type, number)                                                                                 \
    int name(type file)                                                                                           \
    {                                                                                                             \
        int fd = number, now;                                                                                     \
        if (!open_under(fd))                                                                                      \
            return REAL(name)(file);                                                                              \
        now = met();                                                                                              \
        note_close(fd);                                                                                           \
        int result = REAL(name)(file);                                                                            \
        done(now);                                                                                                \
        return now && action == FAIL ? (errno = code, -1) : result;                                               \
    }
CLOSE(close, int, file)
CLOSE(fclose, FILE *, fileno(file))

static ssize_t write_some(int fd, const void *data, size_t length, off_t at, int moves)
{
    int now = met();
    if (now && action == FAIL)
        return errno = code, -1;
    if (now && (action == SHORT || action == KILL_AMID))
        length = length / 3 + (length > 0);
    if (room >= 0 && !reserved[fd]) {
        if (length && !room)
            return errno = ENOSPC, -1;
        length = (long long)length > room ? (size_t)room : length;
        room -= length;
    }
    ssize_t count = moves ? REAL(write)(fd, data, length) : REAL(pwrite64)(fd, data, length, at);
    if (count > 0)
        write_down("write", names[fd], "", at, data, count);
    done(now);
    return count;
}

ssize_t write(int fd, const void *data, size_t length)
{
    if (!open_under(fd))
        return REAL(write)(fd, data, length);
    return write_some(fd, data, length, lseek(fd, 0, SEEK_CUR), 1);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    return open_under(fd) ? write_some(fd, data, length, at, 0) : REAL(pwrite)(fd, data, length, at);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at)
{
    return open_under(fd) ? write_some(fd, data, length, at, 0) : REAL(pwrite64)(fd, data, length, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    if (!open_under(fd))
        return REAL(writev)(fd, parts, count);
    size_t length = 0, at = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    char *all = malloc(length + 1);
    for (int i = 0; i < count; at += parts[i++].iov_len)
        memcpy(all + at, parts[i].iov_base, parts[i].iov_len);
    ssize_t result = write(fd, all, length);
    free(all);
    return result;
}

/* posix_fallocate returns its error instead of setting errno. */
#define RESERVE(name, type)                                                                                       \
    int name(int fd, type at, type length)                                                                        \
    {                                                                                                             \
        if (!open_under(fd))                                                                                      \
            return REAL(name)(fd, at, length);                                                                    \
        int now = met();                                                                                          \
        if (now && action == FAIL)                                                                                \
            return code;                                                                                          \
        if (!reserves)                                                                                            \
            return EOPNOTSUPP;                                                                                    \
        if (room >= 0 && length > room)                                                                           \
            return ENOSPC;                                                                                        \
        int result = REAL(name)(fd, at, length);                                                                  \
        reserved[fd] = !result;                                                                                   \
        room -= room >= 0 ? length : 0;                                                                           \
        if (!result)                                                                                              \
            write_down("truncate", names[fd], "", at + length, NULL, 0);                                          \
        done(now);                                                                                                \
        return result;                                                                                            \
    }
RESERVE(posix_fallocate, off_t)
RESERVE(posix_fallocate64, off64_t)

/* The other calls: caught if `mine`, may fail, and are logged by `note` if they succeed. */
#define OTHER(type, failed, name, parameters, arguments, mine, note)                                              \
    type name parameters                                                                                          \
    {                                                                                                             \
        if (!(mine))                                                                                              \
            return REAL(name) arguments;                                                                          \
        int now = met();                                                                                          \
        if (now && action == FAIL)                                                                                \
            return errno = code, failed;                                                                          \
        type result = REAL(name) arguments;                                                                       \
        if (result != failed) {                                                                                   \
            note;                                                                                                 \
        }                                                                                                         \
        done(now);                                                                                                \
        return result;                                                                                            \
    }
#define CHANGE(name, parameters, arguments, mine, what, path, other, at)                                          \
    OTHER(int, -1, name, parameters, arguments, mine, write_down(what, path, other, at, NULL, 0))
CHANGE(ftruncate, (int fd, off_t length), (fd, length), open_under(fd), "truncate", names[fd], "", length)
CHANGE(ftruncate64, (int fd, off64_t length), (fd, length), open_under(fd), "truncate", names[fd], "", length)
CHANGE(fsync, (int fd), (fd), open_under(fd), "fsync", names[fd], "", 0)
CHANGE(fdatasync, (int fd), (fd), open_under(fd), "fsync", names[fd], "", 0)
CHANGE(rename, (const char *old, const char *new), (old, new), under(new), "rename", old, new, 0)
CHANGE(link, (const char *old, const char *new), (old, new), under(new), "link", old, new, 0)
CHANGE(unlink, (const char *path), (path), under(path), "unlink", path, "", 0)
CHANGE(mkdir, (const char *path, mode_t mode), (path, mode), under(path), "mkdir", path, "", 0)
OTHER(int, -1, flock, (int fd, int how), (fd, how), open_under(fd), )
OTHER(DIR *, NULL, opendir, (const char *path), (path), under(path), )
OTHER(ssize_t, -1, read, (int fd, void *data, size_t length), (fd, data, length), open_under(fd), )
OTHER(ssize_t, -1, preadv64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at),
      open_under(fd), )
OTHER(ssize_t, -1, preadv64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags),
      (fd, parts, count, at, flags), open_under(fd), )
OTHER(int, -1, fstat64, (int fd, struct stat64 *status), (fd, status), open_under(fd), )
OTHER(int, -1, stat64, (const char *path, struct stat64 *status), (path, status), under(path), )
OTHER(int, -1, lstat64, (const char *path, struct stat64 *status), (path, status), under(path), )
OTHER(int, -1, fstatat64, (int at, const char *path, struct stat64 *status, int flags), (at, path, status, flags),
      under(path), )

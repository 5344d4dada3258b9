// SPDX-License-Identifier: Apache-2.0
// Copies a folder before every call by which the process changes something in it: what
// opens for writing, writes, cuts, makes, renames or removes.
//
//     LD_PRELOAD=snapshots.so WATCHED=FOLDER SNAPSHOTS=FOLDER program
//
// SNAPSHOTS/N is what the N-th of these calls finds: what a process leaves that is killed
// there, except that another thread may have started its own next call.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int number = 0;

static int is_watched(const char *path) {
  const char *folder = getenv("WATCHED");
  size_t length = folder ? strlen(folder) : 0;
  return length && path && strncmp(path, folder, length) == 0 &&
         (path[length] == '/' || path[length] == 0);
}

// The path of an entry of an open folder, or of an open file if `name` is empty.
static const char *path_at(int descriptor, const char *name, char *buffer) {
  if (name[0] == '/' || (name[0] && descriptor == AT_FDCWD)) {
    return name;
  }
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, buffer, PATH_MAX - 1);
  if (length < 0) return NULL;
  buffer[length] = 0;
  if (name[0]) snprintf(buffer + length, PATH_MAX - length, "/%s", name);
  return buffer;
}

static void snapshot(void) {
  char target[PATH_MAX], line[64];
  snprintf(target, sizeof target, "%s/%d", getenv("SNAPSHOTS"), number);
  char *arguments[] = {"cp", "-a", getenv("WATCHED"), target, NULL};
  char *environment[] = {"PATH=/usr/bin:/bin", NULL};
  struct stat status;
  pid_t child;
  if (stat(getenv("WATCHED"), &status) != 0) return;  // nothing is there yet
  number++;
  if (posix_spawnp(&child, "cp", NULL, NULL, arguments, environment) != 0) abort();
  int code;
  while (waitpid(child, &code, 0) < 0 && errno == EINTR) {}
  if (code != 0) {
    ssize_t written = write(2, line, snprintf(line, sizeof line, "cp: %d\n", code));
    (void)written;
    abort();
  }
}

// Declares the real function, and runs it after a copy if `watched`.
#define REAL(result, name, ...) \
  static result (*real)(__VA_ARGS__) = NULL; \
  if (!real) real = dlsym(RTLD_NEXT, #name)
#define AFTER_SNAPSHOT(result, watched, call) \
  if (!(watched)) return call; \
  pthread_mutex_lock(&mutex); \
  int before = errno; \
  snapshot(); \
  errno = before; \
  result returned = call; \
  before = errno; \
  pthread_mutex_unlock(&mutex); \
  errno = before; \
  return returned

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    REAL(int, name, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    AFTER_SNAPSHOT(int, (flags & (O_CREAT | O_TRUNC)) && is_watched(path), \
                   real(path, flags, mode)); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    REAL(int, name, int, const char *, int, ...); \
    char buffer[PATH_MAX]; \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest); \
    AFTER_SNAPSHOT( \
        int, \
        (flags & (O_CREAT | O_TRUNC)) && is_watched(path_at(folder, path, buffer)), \
        real(folder, path, flags, mode)); \
  }
OPENAT(openat)
OPENAT(openat64)

#define ON_FILE(result, name, parameters, arguments, ...) \
  result name parameters { \
    REAL(result, name, __VA_ARGS__); \
    char buffer[PATH_MAX]; \
    AFTER_SNAPSHOT(result, is_watched(path_at(file, "", buffer)), real arguments); \
  }
ON_FILE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size),
        int, const void *, size_t)
ON_FILE(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at),
        (file, data, size, at), int, const void *, size_t, off_t)
ON_FILE(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at),
        (file, data, size, at), int, const void *, size_t, off64_t)
ON_FILE(ssize_t, writev, (int file, const struct iovec *parts, int count),
        (file, parts, count), int, const struct iovec *, int)
ON_FILE(int, ftruncate, (int file, off_t size), (file, size), int, off_t)
ON_FILE(int, ftruncate64, (int file, off64_t size), (file, size), int, off64_t)

#define ON_PATH(name, parameters, arguments, ...) \
  int name parameters { \
    REAL(int, name, __VA_ARGS__); \
    AFTER_SNAPSHOT(int, is_watched(path), real arguments); \
  }
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode), const char *, mode_t)
ON_PATH(unlink, (const char *path), (path), const char *)
ON_PATH(rmdir, (const char *path), (path), const char *)
ON_PATH(rename, (const char *path, const char *to), (path, to), const char *,
        const char *)
ON_PATH(link, (const char *path, const char *to), (path, to), const char *,
        const char *)

#define ON_ENTRY(name, parameters, arguments, ...) \
  int name parameters { \
    REAL(int, name, __VA_ARGS__); \
    char buffer[PATH_MAX]; \
    AFTER_SNAPSHOT(int, is_watched(path_at(folder, path, buffer)), real arguments); \
  }
ON_ENTRY(mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode),
         int, const char *, mode_t)
ON_ENTRY(unlinkat, (int folder, const char *path, int flags), (folder, path, flags),
         int, const char *, int)
ON_ENTRY(renameat, (int folder, const char *path, int other, const char *to),
         (folder, path, other, to), int, const char *, int, const char *)
ON_ENTRY(renameat2,
         (int folder, const char *path, int other, const char *to, unsigned flags),
         (folder, path, other, to, flags), int, const char *, int, const char *,
         unsigned)

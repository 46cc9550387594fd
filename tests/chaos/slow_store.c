/* A slow file system, for LD_PRELOAD: while the file SLOW_STORE.slow is there, to open, rename, link
 * or remove a path in the folder SLOW_STORE takes half a second longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void pause_for(const char *path) {
    const char *store = getenv("SLOW_STORE");
    char slow[4096];
    if (store == NULL || strncmp(path, store, strlen(store)) != 0) return;
    snprintf(slow, sizeof slow, "%s.slow", store);
    if (access(slow, F_OK) == 0) usleep(500 * 1000);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                  \
    int name(const char *path, int flags, ...) {                    \
        va_list more;                                               \
        va_start(more, flags);                                      \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;   \
        va_end(more);                                               \
        pause_for(path);                                            \
        return REAL(name)(path, flags, mode);                       \
    }
OPEN(open)
OPEN(open64)

int rename(const char *from, const char *to) {
    pause_for(from);
    return REAL(rename)(from, to);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    pause_for(from);
    return REAL(linkat)(from_fd, from, to_fd, to, flags);
}

int unlink(const char *path) {
    pause_for(path);
    return REAL(unlink)(path);
}

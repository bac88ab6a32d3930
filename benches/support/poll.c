// A load generator that never sleeps: preloaded, it has epoll_wait() come back at once. On a virtual machine, waking
// a client that sleeps on the other core costs the server more than the answer that wakes it; a client on another
// machine costs it nothing of the kind.
#define _GNU_SOURCE
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <unistd.h>

// Often enough for timers of the caller's.
#define LOOKS_MAX 4096

int epoll_wait(int epoll, struct epoll_event *events, int events_max, int timeout) {
    for (int looks = 0; looks < LOOKS_MAX; looks++) {
        int ready = (int)syscall(SYS_epoll_pwait, epoll, events, events_max, 0, NULL, 8);
        if (ready != 0 || timeout == 0) {
            return ready;
        }
    }
    return 0;
}

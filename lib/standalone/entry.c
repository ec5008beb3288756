/*
 * The code that the kernel enters before Deno: it blocks the signals the shim takes over, so that every thread is born with
 * them blocked. Then it looks for a host, a process of the same executable that serves many containers (lib/host). If there
 * is one, or one can be started, this process becomes that container's holder: it drops Deno's image, and is what containerd
 * and the kernel know as the shim, the container's parent above all, while the host does the thinking. A process that copies
 * between a container's pipe and a file is this code alone too. Otherwise, and in the host itself, it lays out the arguments
 * and the environment that the runtime is to see, and does what the kernel would have done, had the executable still named its
 * interpreter: load ld.so and jump to it.
 *
 * No libc, no heap, no relocation, no writable byte: linked by entry.ld into one flat blob, which pack.ts appends to a copy of
 * the executable. Layouts are from elf(5), getauxval(3) and the System V ABI, AMD64 supplement (3.4.1, Process Initialization).
 */
#include <asm/errno.h>
#include <asm/poll.h>
#include <asm/resource.h>
#include <asm/signal.h>
#include <asm/socket.h>
#include <asm/stat.h>
#include <asm/unistd.h>
#include <elf.h>
#include <linux/close_range.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/net.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <linux/signalfd.h>
#include <linux/stat.h>
#include <linux/time.h>
#include <linux/time_types.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The first bytes of the blob. This is the one description of them: pack.ts fills in what is zero here, having compared magic
 * and version. Numbers are little-endian; strings are NUL-terminated and follow each other, `arguments` of them first, then
 * `dropped`, then `added`.
 */
struct header {
  char magic[8];
  uint32_t version;
  uint32_t arguments;  /* strings put in the place of argv[0]; 0: argv stays what it is */
  uint32_t dropped;    /* strings; an environment entry (NAME=value) that begins with one is left out */
  uint32_t added;      /* environment entries put before the caller's */
  uint64_t address;    /* where this header is, as a virtual address of the executable before it was packed */
  uint64_t entry;      /* its e_entry */
  uint64_t strings;    /* offset of the first string from this header */
  uint64_t texts;      /* offset of the texts that the program is to find */
  uint64_t bias;       /* what packing has added to the virtual addresses in the program headers */
  uint64_t build;      /* tells this build of the executable from others; 0: it has no hosts */
};

enum { ENTRY_OFFSET = 80 }; /* of _start from the header, also in entry.ld and pack.ts */

_Static_assert(sizeof(struct header) == 72 && sizeof(struct header) <= ENTRY_OFFSET, "pack.ts writes this layout");

/* weak: so the compiler cannot count on these values, which are written after it has run. */
__attribute__((weak, visibility("hidden"), section(".header")))
const struct header header = {.magic = "DENOENTR", .version = 3};

enum {
  EXIT_NOT_STARTED = 127, /* as a shell says of a command that it cannot run */
  PAGE = 4096,
  MAX_INTERPRETER_HEADERS = 32, /* glibc's ld.so has 11 */
  PHDR_WORDS = sizeof(Elf64_Phdr) / sizeof(uintptr_t),
};

/*
 * System calls, each with as many arguments as it has: what is not set costs no code. Registers are those of syscall(2);
 * the kernel changes rcx and r11. All arguments are evaluated before a register is set, for that may take a function call.
 */
#define SYSTEM_CALL(n, ...)                                                                                                \
  long result;                                                                                                             \
  __asm__ volatile("syscall" : "=a"(result) : "a"(n) __VA_ARGS__ : "rcx", "r11", "memory");                                \
  result
#define CALL0(n) ({ SYSTEM_CALL(n); })
#define CALL1(n, a) ({ SYSTEM_CALL(n, ,"D"((long)(a))); })
#define CALL2(n, a, b) ({ SYSTEM_CALL(n, ,"D"((long)(a)), "S"((long)(b))); })
#define CALL3(n, a, b, c) ({ SYSTEM_CALL(n, ,"D"((long)(a)), "S"((long)(b)), "d"((long)(c))); })
#define VALUES(a, b, c, d) const long rdi = (long)(a), rsi = (long)(b), rdx = (long)(c), fourth = (long)(d)
#define CALL4(n, a, b, c, d)                                                                                               \
  ({                                                                                                                       \
    VALUES(a, b, c, d);                                                                                                    \
    register long r10 __asm__("r10") = fourth;                                                                             \
    SYSTEM_CALL(n, ,"D"(rdi), "S"(rsi), "d"(rdx), "r"(r10));                                                              \
  })
#define CALL5(n, a, b, c, d, e)                                                                                            \
  ({                                                                                                                       \
    VALUES(a, b, c, d);                                                                                                    \
    const long fifth = (long)(e);                                                                                          \
    register long r10 __asm__("r10") = fourth;                                                                             \
    register long r8 __asm__("r8") = fifth;                                                                                \
    SYSTEM_CALL(n, ,"D"(rdi), "S"(rsi), "d"(rdx), "r"(r10), "r"(r8));                                                     \
  })
#define CALL6(n, a, b, c, d, e, f)                                                                                         \
  ({                                                                                                                       \
    VALUES(a, b, c, d);                                                                                                    \
    const long fifth = (long)(e), sixth = (long)(f);                                                                       \
    register long r10 __asm__("r10") = fourth;                                                                             \
    register long r8 __asm__("r8") = fifth;                                                                                \
    register long r9 __asm__("r9") = sixth;                                                                                \
    SYSTEM_CALL(n, ,"D"(rdi), "S"(rsi), "d"(rdx), "r"(r10), "r"(r8), "r"(r9));                                            \
  })
#define PICK(n, a, b, c, d, e, f, with, ...) with
#define call(...) PICK(__VA_ARGS__, CALL6, CALL5, CALL4, CALL3, CALL2, CALL1, CALL0)(__VA_ARGS__)

static void print(const char *text) {
  size_t length = 0;
  while (text[length]) length++;
  call(__NR_write, 2, text, length);
}

static int failed(long result) { return result < 0 && result > -PAGE; }

static uintptr_t page_down(uintptr_t address) { return address & ~(uintptr_t)(PAGE - 1); }

static uintptr_t page_up(uintptr_t address) { return page_down(address + PAGE - 1); }

static int begins_with(const char *text, const char *prefix) {
  while (*prefix)
    if (*text++ != *prefix++) return 0;
  return 1;
}

static const char *next_string(const char *text) {
  while (*text++) {
  }
  return text;
}

#define BIT(signal) (1ull << ((signal)-1))

/*
 * All signals but those that lib/signals.ts leaves alone and gives the reasons for, in addition to what the caller has
 * blocked: a signalfd sees a signal of the process only if no thread can take it first (signalfd(2)), and Deno has threads
 * before its first line of JavaScript.
 */
static uint64_t block_signals(void) {
  const uint64_t left_alone = BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGABRT) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGSEGV) |
                              BIT(SIGSYS) | BIT(SIGPROF) | BIT(SIGKILL) | BIT(SIGSTOP) | BIT(32) | BIT(33);
  const uint64_t set = ~left_alone;
  call(__NR_rt_sigprocmask, SIG_BLOCK, &set, 0, sizeof set);
  return set;
}

/*
 * What the program learns by its environment. When it was entered, in ns of CLOCK_MONOTONIC, for whoever wants to see what the
 * start costs (ffi/clock.ts). The soft limit of open files (getrlimit(2)) as the caller has set it: Deno raises
 * its own to the hard limit before the program's first line, and every child would inherit that; the program puts it back
 * (ffi/process.ts). And where the texts are that it is to read (make.ts). Where a soft limit was too small for Deno, and has been
 * raised: all of those that are looked at as the caller has set them, a number each.
 *
 * The last is for the C library: one heap of malloc for all threads, of which there is hardly ever more than one that does
 * something, where each would keep some 150 KiB for itself (mallopt(3), M_ARENA_MAX). ld.so writes into it.
 */
#define ENTERED "CONTAINERD_SHIM_ENTERED="
#define LIMIT "CONTAINERD_SHIM_NOFILE="
#define TEXTS "CONTAINERD_SHIM_TEXTS="
#define BUILD "CONTAINERD_SHIM_BUILD="
#define ARENAS "GLIBC_TUNABLES=glibc.malloc.arena_max="
#define LIMITS "CONTAINERD_SHIM_LIMITS="
enum { VARIABLES = 5, VARIABLE_SIZE = sizeof ENTERED + 20 }; /* the longest of them; 2^64 has 20 digits */
_Static_assert(sizeof ARENAS + 1 <= VARIABLE_SIZE, "its number has one digit");

static char *append(char *out, const char *text) {
  while (*text) *out++ = *text++;
  *out = 0;
  return out;
}

static char *append_number(char *out, uint64_t value) {
  char digits[20];
  size_t count = 0;
  do digits[count++] = (char)('0' + value % 10);
  while (value /= 10);
  while (count) *out++ = digits[--count];
  *out = 0;
  return out;
}

static void print_number(uint64_t value) {
  char digits[21];
  append_number(digits, value);
  print(digits);
}

#define CANNOT_START "containerd-shim: cannot start: "

__attribute__((noreturn)) static void give_up(void) {
  print("\n");
  for (;;) call(__NR_exit_group, EXIT_NOT_STARTED);
}

/* One sentence on stderr of a loader that is not there, or cannot be used; error is what the system call returned. */
__attribute__((noreturn)) static void fail(const char *what, const char *path, long error) {
  print(CANNOT_START);
  print(what);
  print(path);
  print(" (errno ");
  print_number((uint64_t)-error);
  print("); it needs the GNU C library (glibc) 2.27 or later"); /* as glibc.ts has it */
  give_up();
}

static void describe(char *out, const char *name, uint64_t value) { append_number(append(out, name), value); }

static uint64_t now(void) {
  struct __kernel_timespec time = {0, 0};
  call(__NR_clock_gettime, CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t limit_of_open_files(void) {
  uint64_t limit[2] = {0, 0}; /* struct rlimit: soft, hard */
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, limit);
  return limit[0];
}

/* Sets the soft limit, to the hard one at most. */
static void set_open_files(uint64_t soft) {
  uint64_t limit[2] = {0, 0};
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, limit);
  limit[0] = soft < limit[1] ? soft : limit[1];
  call(__NR_prlimit64, 0, RLIMIT_NOFILE, limit, 0);
}

/*
 * What Deno needs, with something to spare, or it ends with a trace of its stack: V8 reserves 32 GiB of address space. The
 * names are those of prlimit(1). ffi/process.ts has the order.
 */
static const struct need {
  uint64_t least;
  uint32_t resource;
  char name[8];
} needs[] = {
    {34ull << 30, RLIMIT_AS, "as"},
    {640ull << 20, RLIMIT_DATA, "data"},
    {1ull << 20, RLIMIT_STACK, "stack"},
    {32, RLIMIT_NOFILE, "nofile"},
};
enum { NEEDS = sizeof needs / sizeof *needs, LIMITS_SIZE = sizeof LIMITS + NEEDS * 21 };

/* Raises the soft limits that are too small for Deno. Returns whether there was one; `out` becomes the variable that has all. */
static int raise_limits(char *out) {
  int raised = 0;
  out = append(out, LIMITS);
  for (size_t i = 0; i < NEEDS; i++) {
    uint64_t limit[2] = {0, 0};
    call(__NR_prlimit64, 0, needs[i].resource, 0, limit);
    out = append(append_number(out, limit[0]), " ");
    if (limit[0] >= needs[i].least) continue;
    if (limit[1] < needs[i].least) {
      print(CANNOT_START "the hard limit ");
      print(needs[i].name);
      print(" (prlimit(1)) is ");
      print_number(limit[1]);
      print(", and Deno needs ");
      print_number(needs[i].least);
      give_up();
    }
    limit[0] = limit[1];
    call(__NR_prlimit64, 0, needs[i].resource, limit, 0);
    raised = 1;
  }
  return raised;
}

/*
 * A child of a program whose limits have been raised, which is to have those from before: argv is this word, the soft limits,
 * the path of the program, and its argv.
 */
#define CHILD "containerd-shim-child"

__attribute__((noreturn)) static void become_child(const char *const *argv, const char *const *envp) {
  for (size_t i = 0; i < NEEDS; i++) {
    uint64_t limit[2];
    call(__NR_prlimit64, 0, needs[i].resource, 0, limit);
    limit[0] = 0;
    for (const char *digit = argv[1 + i]; *digit; digit++) limit[0] = limit[0] * 10 + (uint64_t)(*digit - '0');
    call(__NR_prlimit64, 0, needs[i].resource, limit, 0);
  }
  call(__NR_execve, argv[1 + NEEDS], argv + 2 + NEEDS, envp);
  for (;;) call(__NR_exit_group, EXIT_NOT_STARTED);
}

/* --- Holder and host ---------------------------------------------------------------------------------------------------- */

/*
 * The two speak over a Unix socket that keeps messages apart (SOCK_SEQPACKET, unix(7)). This is the one description of the
 * messages; lib/host/protocol.ts reads and writes the same. Numbers are of this machine's byte order.
 */
enum { PROTOCOL = 3 }; /* 2: of 0.1, whose holders send no PING, and reap one child at a time */

/* From the holder, each a struct told but the first, which is a struct join. */
enum {
  JOIN = 1,  /* with descriptor LISTENER */
  GO,        /* the host may serve: this process does nothing else any more, and has handed over all that it has kept */
  SIGNALLED, /* what: the signal; told again to the next host, unless this one says that it has dealt with it */
  EXITED,    /* what: the pid, detail: si_status, more: si_code of waitid(2); it has been reaped. Of children by SPAWN and WATCH
                alone; told again to the next host, unless this one says that it has dealt with it */
  SPAWNED,   /* what: the pid, or 0 and detail: the error, more: what SPAWN was numbered with; before any EXITED of it */
  HELD,      /* what: the number of the descriptor that comes with it, more: which of the numbers after that come too (bit 0 is
                the next); or of one that cannot be had, and detail: the error */
  PING,      /* to be answered by PONG */
};

/* From the host, each a struct order. */
enum {
  ACCEPTED = 1, /* value: the pid of the host; 0 where that does not answer a PING */
  REFUSED, /* go alone */
  FULL,    /* go to the next host */
  END,     /* value: the exit status */
  SPAWN,   /* value: a number for it */
  KEEP,    /* value: the number by which the descriptor that came with it is kept, as all are that follow */
  DROP,    /* value: the number of one that is closed, `more`: which of the numbers after that are too (bit 0 is the next) */
  DONE,    /* value: the pid of one whose EXITED has been dealt with, or that is not to be watched any more; 0 when the host can be
              told of exits; or minus the signal */
  ACCEPT,  /* from the listening socket that `from` is the number of */
  OPEN,    /* a path, which follows, with the flags `flags` of open(2); held open with `first` meanwhile, if that can be */
  MOVE,    /* to a host of the build that `build` tells, whose executable comes with it */
  PONG,    /* it lives */
  WATCH = 13, /* value: the pid of a process whose exit is to be told, also when it has ended since HOLD */
  HOLD,    /* value: whether the exits of all children are kept from now on, for WATCH; also when this host has gone */
};

/*
 * Followed by the working directory, and by the strings of the command line and of the environment as the kernel has laid
 * them out.
 */
struct join {
  uint32_t kind;
  uint32_t protocol;
  uint64_t build;
  uint64_t entered; /* ns of CLOCK_MONOTONIC */
  uint32_t group;   /* how many containers a host may have, this one among them */
  uint32_t folder_size;
  uint32_t arguments;
  uint32_t environment;
  struct past {       /* of one that has had a host before */
    uint64_t signals; /* which that one has not said to have dealt with: bit 0 is signal 1 */
    struct told {
      uint32_t kind;
      int32_t what;
      int32_t detail;
      int32_t more;
    } spawned; /* the last */
    uint32_t hosts; /* that it has had */
    uint16_t is_moved; /* to a build that is not its own */
    uint16_t is_hung;  /* whether the last one has been killed because it did not answer any more */
  } past;
};

/*
 * For SPAWN followed by strings: the working directory (none when empty), the programs to try in turn, the arguments, the
 * environment. The descriptors that come with it are the child's, by their order.
 */
struct order {
  uint32_t kind;
  int32_t value;
  union {
    struct {
      uint32_t programs;
      uint32_t arguments;
      uint32_t environment; /* OWN_ENVIRONMENT: this process's own */
      int32_t error; /* of the child that could not become the program: for the holder's own use */
    };
    uint32_t more;
    struct {
      int32_t from;
      int32_t flags;
      int32_t first;
    };
    uint64_t build;
  };
};

#define OWN_ENVIRONMENT UINT32_MAX

#define FOLDER "/run/containerd-shim"
#define GROUP "CONTAINERD_SHIM_GROUP="
#define WATCHDOG "CONTAINERD_SHIM_WATCHDOG="

enum {
  LISTENER = 3, /* the descriptor that containerd passes */
  HOST,         /* in a holder: the connection to its host, */
  SIGNALS,      /* the signalfd, */
  EXECUTABLE,   /* that of its host's build, if it has moved, */
  LAST_EXECUTABLE, /* that of the build before, */
  KEPT = 8,     /* and the first of those that it keeps */
  DEFAULT_GROUP = 32,
  DEFAULT_WATCHDOG = 10, /* in s: how long a host may give no sign of life */
  ASKS = 5, /* how often it is asked for one in that time */
  ASKS_AT_START = 10 * ASKS, /* the same for one that is only starting: the machine may be short of CPUs */
  HOSTS = 100,  /* of one kind, at most: named by numbers below that */
  MAX_GIVEN = 8, /* descriptors that come with a message */
  MAX_FOLDER = 4096,
  HOST_FILES = 1024, /* descriptors that a host has room for from the start */
  MAX_CPUS = 8192,   /* that Linux can have: NR_CPUS */
  USED_STACK = 4 * PAGE,
  NOT_HELD = 1, /* exit status */
  FEW = 8, /* children that there is room for without memory of their own */
  MAX_HELD = 1 << 16, /* exits that are kept for WATCH: the older half is forgotten then */
  REAPED_AT_ONCE = 256, /* children that are reaped before the next message is taken */
  TOLD_AT_ONCE = 64, /* exits that a host is told of before it has dealt with the first: there is room for so many in a socket */
};

/* In ns: how long a host may take to answer, and one that is only starting, which a shim by itself would have to do too. */
static const uint64_t SECOND = 1000000000, JOIN_TIMEOUT = 200000000, START_TIMEOUT = 999999999, RETRY_DELAY = 1000000;

/* How long is rested where no host has come for a second. */
static const uint64_t LONG_RETRY_DELAY = 50000000;

/* The same for a holder that is to move to another build, which may never come up. */
static const uint64_t MOVE_TIMEOUT = 5000000000;

/* How often a holder that waits for a host's answer looks for children that have ended, in ns. */
static const int64_t REAP_DELAY = 2000000;

/*
 * unix(7), socket(7), cmsg(3), flock(2), wait(2), access(2), ioprio_get(2): what the kernel's headers for programs leave to the C
 * library's.
 */
enum { AF_UNIX = 1, SCM_RIGHTS = 1, MSG_PEEK = 2, MSG_CTRUNC = 8, MSG_TRUNC = 0x20, MSG_DONTWAIT = 0x40 };
enum { R_OK = 4, W_OK = 2 };
enum { P_ALL, P_PID, WNOHANG = 1, WEXITED = 4, WNOWAIT = 0x01000000 };
enum { IOPRIO_WHO_PROCESS = 1, IOPRIO_CLASS_SHIFT = 13 };
enum { SHUT_RDWR = 2 };
enum { DATAGRAM = 2, SEQPACKET = 5, NONBLOCK = 04000, MSG_NOSIGNAL = 0x4000, MSG_CMSG_CLOEXEC = 0x40000000, BACKLOG = 4096 };

struct address {
  uint16_t family;
  char path[108];
};

struct piece {
  const void *base;
  size_t length;
};

struct message {
  void *name;
  uint32_t name_length;
  const struct piece *pieces;
  size_t count;
  void *control;
  size_t control_length;
  int flags;
};

struct rights {
  size_t length;
  int level;
  int type;
  int fds[MAX_GIVEN];
};

static const size_t RIGHTS_HEADER = offsetof(struct rights, fds);

static void close_fd(long fd) { call(__NR_close, fd); }

/* struct linux_dirent64, getdents64(2): where in it these are. */
enum { ENTRY_SIZE = 16, ENTRY_NAME = 19 };

/* Closes all descriptors from `first`, or with CLOSE_RANGE_CLOEXEC has execve(2) do it. */
static void close_from(int first, int flags) {
  if (!call(__NR_close_range, first, UINT32_MAX, flags)) return;
  /* Before Linux 5.9 there is no such call, and before 5.11 it has no flags. */
  char entries[512];
  const long folder = call(__NR_open, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  for (long size; (size = call(__NR_getdents64, folder, entries, sizeof entries)) > 0;)
    for (const char *entry = entries; entry < entries + size; entry += *(const uint16_t *)(entry + ENTRY_SIZE)) {
      int fd = 0;
      for (const char *digit = entry + ENTRY_NAME; *digit >= '0'; digit++) fd = fd * 10 + *digit - '0';
      if (fd < first || fd == folder) continue;
      if (flags) call(__NR_fcntl, fd, F_SETFD, FD_CLOEXEC);
      else close_fd(fd);
    }
  close_fd(folder);
}

static void rest(uint64_t ns) {
  const struct __kernel_timespec time = {0, (long)ns};
  call(__NR_nanosleep, &time, 0);
}

/* Waits at most so many ns for something to come. Returns how many of the descriptors have something. */
static long wait_for(struct pollfd *polled, size_t count, int64_t ns) {
  const struct __kernel_timespec time = {ns > 0 ? ns / (int64_t)SECOND : 0, ns > 0 ? ns % (int64_t)SECOND : 0};
  return call(__NR_ppoll, polled, count, &time, 0, 0);
}

/*
 * With as many descriptors of `rights`. What cannot be sent for the moment (memory is short, or too many descriptors are on
 * their way: ETOOMANYREFS of unix(7)) is tried again; a host that cannot be told for another reason is given up.
 */
static void tell(long host, const struct told *told, struct rights *rights, size_t count) {
  const struct piece piece = {told, sizeof *told};
  struct message message = {NULL, 0, &piece, 1, rights, 0, 0};
  if (count) {
    rights->length = RIGHTS_HEADER + count * sizeof(int);
    rights->level = SOL_SOCKET;
    rights->type = SCM_RIGHTS;
    message.control_length = RIGHTS_HEADER + ((count + 1) & ~(size_t)1) * sizeof(int);
  }
  long sent;
  while (failed(sent = call(__NR_sendmsg, host, &message, MSG_NOSIGNAL))) {
    /* It has gone; what is read next says so. */
    if (sent == -EPIPE || sent == -ECONNRESET) return;
    if (sent != -EINTR && sent != -EAGAIN && sent != -ENOBUFS && sent != -ENOMEM && sent != -ETOOMANYREFS) {
      call(__NR_shutdown, host, SHUT_RDWR);
      return;
    }
    rest(RETRY_DELAY);
  }
}

/* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv */
static uint64_t hashed(uint64_t hash, const void *bytes, size_t count) {
  for (const uint8_t *byte = bytes; count--; byte++) hash = (hash ^ *byte) * 0x100000001b3;
  return hash;
}

/*
 * What decides how much of the machine this process may use, and what it starts: its cgroups (cgroups(7)), what sched(7) has,
 * I/O priority (ioprio_get(2)), and hard limits (getrlimit(2); who needs a higher soft limit raises it). What is changed later,
 * by containerd with its option ShimCgroup or by an administrator, is seen the next time. Not oom_score_adj: containerd changes
 * that of each shim right after it has started it, and lib/host/fit.ts sees to it.
 */
static uint64_t hashed_resources(uint64_t hash) {
  char bytes[MAX_CPUS / 8]; /* also of the cgroups, of which there is a line for each hierarchy */
  const long cgroups = call(__NR_open, "/proc/self/cgroup", O_RDONLY | O_CLOEXEC);
  for (long size; (size = call(__NR_read, cgroups, bytes, sizeof bytes)) > 0;) hash = hashed(hash, bytes, (size_t)size);
  close_fd(cgroups);
  const long size = call(__NR_sched_getaffinity, 0, sizeof bytes, bytes);
  if (size > 0) hash = hashed(hash, bytes, (size_t)size);
  struct sched_attr scheduling = {0};
  call(__NR_sched_getattr, 0, &scheduling, sizeof scheduling, 0);
  const long io = call(__NR_ioprio_get, IOPRIO_WHO_PROCESS, 0);
  const uint32_t priorities[] = {
      scheduling.sched_policy,
      (uint32_t)scheduling.sched_nice,
      scheduling.sched_priority,
      /* What has no class has whatever number: it changes with the first I/O before Linux 6. */
      io >> IOPRIO_CLASS_SHIFT ? (uint32_t)io : 0,
  };
  hash = hashed(hash, priorities, sizeof priorities);
  for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
    uint64_t limit[2] = {0, 0}; /* struct rlimit: soft, hard */
    call(__NR_prlimit64, 0, resource, 0, limit);
    hash = hashed(hash, &limit[1], sizeof limit[1]);
  }
  return hash;
}

/*
 * What a host has in common with its holders, as a number: the build, the user, the namespaces (namespaces(7)), and the
 * resources. So nobody asks a host, or waits for one, that has less than itself.
 */
static uint64_t kind_of_host(uint64_t build) {
  uint64_t hash = hashed(0xcbf29ce484222325, &build, sizeof build);
  const uint32_t ids[2] = {(uint32_t)call(__NR_geteuid), (uint32_t)call(__NR_getegid)};
  hash = hashed(hash, ids, sizeof ids);
  const char *const names = "cgroup\0ipc\0mnt\0net\0pid\0time\0user\0uts\0";
  for (const char *name = names; *name; name = next_string(name)) {
    char path[32], target[32];
    append(append(path, "/proc/self/ns/"), name);
    const long length = call(__NR_readlink, path, target, sizeof target);
    if (length > 0) hash = hashed(hash, target, (size_t)length); /* time: since Linux 5.6 */
  }
  return hashed_resources(hash);
}

/* What this process was started with. */
struct started {
  const char *const *argv;
  const char *const *envp;
  size_t argc;
  size_t envc;
  uint64_t entered;
};

/* A child that a host has asked for, or that has ended and may be asked for. */
struct child {
  int32_t pid;
  uint8_t code;    /* si_code of waitid(2), 0 before it has ended, */
  uint8_t status;  /* and si_status */
  uint8_t is_held; /* it has ended, and nobody has asked for it */
  uint8_t is_told; /* this host has been told of its end */
};

/* What a holder knows, from one host to the next. */
struct holder {
  uint64_t build; /* of its host */
  uint64_t last_build; /* the one to go back to, */
  uint32_t was_moved;  /* and whether that was another than its own */
  int highest;    /* number of what it keeps, at most */
  struct past past;
  uint64_t turn; /* in ns: how often the host is asked for a sign of life, if it gives none */
  uint64_t due;  /* ns of CLOCK_MONOTONIC: when that is to be done next */
  int is_watched; /* whether a host that gives none is killed */
  int32_t host;   /* the pid of its host; 0: that does not answer */
  int talks;      /* whether the host has said anything in this turn but that it lives */
  uint32_t asked; /* how often in a row without an answer */
  uint64_t lost;  /* ns of CLOCK_MONOTONIC: since when there is no host */
  uint32_t has_reported; /* that there is none */
  uint64_t open_files; /* the soft limit that it was started with: its children's */
  struct child *children; /* first those that have not ended, then those that have, in the order of their ends */
  size_t size;     /* of their memory, in bytes; 0: they are in `few` */
  uint32_t count;  /* all of them, */
  uint32_t alive;  /* those that have not ended, */
  uint32_t held;   /* those that have, and nobody has asked for, */
  uint32_t untold; /* and those that the host is yet to be told of, */
  uint32_t room;   /* for so many now */
  uint32_t holds;  /* whether others than those that are asked for are kept */
  struct child few[FEW];
};

/* How long a host may give no sign of life, in ns. */
static uint64_t patience(const struct holder *holder) { return holder->turn * ASKS; }


/* --- Children ----------------------------------------------------------------------------------------------------------- */

/*
 * All that have ended are reaped at once: in the host's pid namespace a container can have orphans without end. Kept is who
 * has ended as what, of those that the host has asked for, until it has dealt with that.
 */

/* Makes room for so many children and no more, in pages; or gives the error. */
static long make_room(struct holder *holder, size_t count) {
  const size_t size = count > FEW ? page_up(count * sizeof(struct child)) : 0;
  if (size == holder->size) return 0;
  long memory = (long)holder->few;
  if (size && holder->size) memory = call(__NR_mremap, holder->children, holder->size, size, MREMAP_MAYMOVE);
  else if (size) memory = call(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (failed(memory)) return memory;
  if (!size || !holder->size)
    for (size_t i = 0; i < FEW; i++) ((struct child *)memory)[i] = holder->children[i];
  if (!size) call(__NR_munmap, holder->children, holder->size);
  holder->children = (struct child *)memory;
  holder->size = size;
  return 0;
}

/* Takes one out, those behind it move up. */
static struct child take_out(struct holder *holder, size_t at) {
  const struct child child = holder->children[at];
  holder->count--;
  if (at < holder->alive) holder->alive--;
  for (; at < holder->count; at++) holder->children[at] = holder->children[at + 1];
  return child;
}

/* Has the exit of a child told; or gives the error. */
static long know(struct holder *holder, int32_t pid) {
  for (size_t i = 0; i < holder->alive; i++)
    if (holder->children[i].pid == pid) return 0;
  const long error = make_room(holder, holder->count + 1);
  if (error) return error;
  for (size_t i = holder->count++; i > holder->alive; i--) holder->children[i] = holder->children[i - 1];
  holder->children[holder->alive++] = (struct child){pid, 0, 0, 0, 0};
  return 0;
}

/* Forgets the oldest of those that nobody has asked for, but for so many. */
static void forget_held(struct holder *holder, uint32_t most) {
  uint32_t left = holder->alive;
  for (uint32_t i = left; i < holder->count; i++) {
    const struct child child = holder->children[i];
    if (child.is_held && holder->held > most) holder->held--;
    else holder->children[left++] = child;
  }
  holder->count = left;
  make_room(holder, left);
}

/* Reaps children that have ended. Returns whether there may be more. */
static int reap(struct holder *holder) {
  for (int i = 0; i < REAPED_AT_ONCE; i++) {
    int info[32] = {0}; /* siginfo_t: si_code, si_pid, si_status */
    call(__NR_waitid, P_ALL, 0, info, WEXITED | WNOHANG, 0);
    const int32_t pid = info[4];
    if (!pid) return 0;
    struct child child = {pid, (uint8_t)info[2], (uint8_t)info[6], 1, 0};
    for (size_t at = 0; at < holder->alive && child.is_held; at++) {
      if (holder->children[at].pid != pid) continue;
      take_out(holder, at);
      child.is_held = 0;
      holder->untold++;
    }
    if (child.is_held) {
      if (!holder->holds || make_room(holder, holder->count + 1)) continue;
      holder->held++;
    }
    holder->children[holder->count++] = child;
    if (holder->held > MAX_HELD) forget_held(holder, MAX_HELD / 2);
  }
  return 1;
}

/* Tells the host of those that have ended, as many as there is room for. */
static void tell_exits(struct holder *holder) {
  for (size_t i = holder->alive; holder->untold && holder->room; i++) {
    struct child *const child = &holder->children[i];
    if (child->is_held || child->is_told) continue;
    child->is_told = 1;
    holder->untold--;
    holder->room--;
    const struct told told = {EXITED, child->pid, child->status, child->code};
    tell(HOST, &told, NULL, 0);
  }
}

/* The host has dealt with the exit of one, or does not watch it any more. */
static void forget(struct holder *holder, int32_t pid) {
  for (size_t i = 0; i < holder->count; i++) {
    /* Of the same pid, what has ended comes first. */
    const size_t at = (holder->alive + i) % holder->count;
    if (holder->children[at].pid != pid || (at >= holder->alive && !holder->children[at].is_told)) continue;
    holder->room += take_out(holder, at).is_told;
    make_room(holder, holder->count);
    return;
  }
}

/* Has the exit of a process told that the OCI runtime has started. */
static void watch(struct holder *holder, int32_t pid) {
  int info[32];
  /* One that is there now is not the one that has had its number before. */
  if (call(__NR_waitid, P_PID, pid, info, WEXITED | WNOHANG | WNOWAIT, 0))
    for (size_t i = holder->count; i-- > holder->alive;) {
      struct child *const child = &holder->children[i];
      if (child->pid != pid) continue;
      if (child->is_held) {
        child->is_held = 0;
        holder->held--;
        holder->untold++;
      }
      return;
    }
  while (know(holder, pid)) rest(RETRY_DELAY);
}

/* Waits at most so many ns for something to come, and reaps meanwhile: children do not wait for a host. */
static long wait_and_reap(struct pollfd *polled, struct holder *holder, int64_t ns) {
  const uint64_t until = now() + (uint64_t)(ns > 0 ? ns : 0);
  for (;;) {
    const int64_t left = (int64_t)(until - now());
    const int is_part = holder->past.hosts && left > REAP_DELAY;
    const long ready = wait_for(polled, 1, is_part ? REAP_DELAY : left);
    if (ready || !is_part) return ready;
    reap(holder);
  }
}

/* --- Finding a host ----------------------------------------------------------------------------------------------------- */

/*
 * Starts a host: a child of nobody here, unless that is a holder, whose children's children are its own; in a session of its
 * own, with the socket as descriptor 3 and the lock, which is
 * held as long as anyone has it open, as 4.
 */
static void start_host(const struct started *started, const struct holder *holder, uint64_t kind, const char *path,
                       long listener, long lock) {
  const long child = call(__NR_clone, SIGCHLD, 0, 0, 0);
  if (child > 0) call(__NR_wait4, child, 0, 0, 0);
  if (child) return;
  call(__NR_setsid);
  /* containerd moves a shim to its ShimCgroup, if there is one, right after its start; and never this child of it. */
  if (kind_of_host(holder->build) == kind && !call(__NR_clone, SIGCHLD, 0, 0, 0)) {
    /* LISTENER is open here, and the lock was opened before the socket: neither takes the other's place. */
    call(__NR_dup2, listener, LISTENER);
    call(__NR_dup2, lock, LISTENER + 1);
    close_from(LISTENER + 2, CLOSE_RANGE_CLOEXEC);
    const long null = call(__NR_open, "/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd <= 2; fd++) call(__NR_dup2, null, fd);
    /* A table of descriptors that grows when there are threads waits for RCU: 15 ms each time that it doubles. */
    call(__NR_fcntl, null, F_DUPFD_CLOEXEC, HOST_FILES - 1);
    call(__NR_chdir, "/");
    const char *const argv[] = {"containerd-shim-host", "host", path, NULL};
    call(__NR_execve, holder->past.is_moved ? "/proc/self/fd/6" : "/proc/self/exe", argv, started->envp);
  }
  call(__NR_exit_group, 0);
}

/* What a host that has started writes into the file of its lock. */
struct noted {
  uint32_t count; /* of its containers */
  int32_t pid;
};

static int is_ours(long host) {
  int32_t peer[3]; /* struct ucred */
  uint32_t size = sizeof peer;
  return call(__NR_getsockopt, host, SOL_SOCKET, SO_PEERCRED, peer, &size) == 0 &&
         peer[1] == call(__NR_geteuid) && peer[2] == call(__NR_getegid);
}

/*
 * Tells syslog(3) of an error, which no host can, and with it the journal, that has /dev/log where there is one. It is lost where
 * nobody takes it.
 */
static void report(const char *message) {
  char line[256 + MAX_FOLDER], *end = append(append(append(line, "<27>containerd-shim: "), message), " path=");
  const long size = call(__NR_getcwd, end, MAX_FOLDER);
  const struct address address = {AF_UNIX, "/dev/log"};
  const long socket = call(__NR_socket, AF_UNIX, DATAGRAM | O_CLOEXEC, 0);
  call(__NR_sendto, socket, line, end - line + (failed(size) ? 0 : size - 1), MSG_DONTWAIT, &address, sizeof address);
  close_fd(socket);
}

/* Whether this process can only wait for a host, and not become a shim by itself, or go back to another build. */
static int has_no_other_way(const struct holder *holder) { return holder->past.hosts && !holder->past.is_moved; }

/*
 * To be called again and again while there is no host. That none comes for long is reported. Who is told to end then, ends:
 * containerd sees that, and has the OCI runtime kill the container and remove it, as with any shim that dies. A holder by
 * itself cannot: it knows neither the runtime nor what belongs to the container.
 */
static void be_without_host(struct holder *holder) {
  if (!holder->past.hosts || now() - holder->lost < patience(holder)) return;
  if (!holder->has_reported++) report("the shim has no host: no call is answered, and on SIGTERM it ends without its container");
  uint64_t signals = 0;
  call(__NR_rt_sigpending, &signals, sizeof signals);
  if ((signals | holder->past.signals) & (BIT(SIGTERM) | BIT(SIGINT))) call(__NR_exit_group, NOT_HELD);
}

/* Waits before it is tried once more to find a host. */
static void wait_for_host(struct holder *holder) {
  be_without_host(holder);
  rest(holder->past.hosts && now() - holder->lost > START_TIMEOUT ? LONG_RETRY_DELAY : RETRY_DELAY);
}

/*
 * Whether a host says nothing for so many turns on end. One in which this process has not been running itself, because it
 * was stopped or frozen, does not count.
 */
static int is_silent(long host, struct holder *holder, int turns) {
  for (int turn = 0; turn < turns; turn++) {
    const uint64_t since = now();
    struct pollfd poll = {(int)host, POLLIN, 0};
    if (wait_and_reap(&poll, holder, (int64_t)holder->turn)) return 0;
    if (now() - since > holder->turn + holder->turn / 2) turn = -1;
    be_without_host(holder);
  }
  return 1;
}

/*
 * Kills a host. As long as the connection to it is not at its end, that process is there, and no other has its number: that is
 * looked at when there is a descriptor of it, or where there can be none (before Linux 5.3), just before.
 */
static void kill_host(long connection, int32_t pid) {
  char byte;
  if (pid <= 0) return;
  const long process = call(__NR_pidfd_open, pid, 0);
  if (call(__NR_recvfrom, connection, &byte, sizeof byte, MSG_PEEK | MSG_DONTWAIT, 0, 0) == -EAGAIN &&
      failed(call(__NR_pidfd_send_signal, process, SIGKILL, 0, 0)) && process != -ESRCH)
    call(__NR_kill, pid, SIGKILL);
  close_fd(process);
}

/*
 * Asks a host that is connected to take this container.
 *
 * Returns what it says; 0 when it does not say anything until then, or for so many turns where it is waited for; -1 when it
 * has gone.
 */
static int ask(long host, const struct started *started, struct holder *holder, uint32_t group, uint64_t until, int turns) {
  char folder[MAX_FOLDER];
  long folder_size = call(__NR_getcwd, folder, sizeof folder); /* with its NUL */
  if (failed(folder_size) || *folder != '/') {
    if (!holder->past.hosts) return REFUSED;
    /* It has been removed. */
    *folder = 0;
    folder_size = 1;
  }
  const char *const last = started->envc ? started->envp[started->envc - 1] : started->argv[started->argc - 1];
  const struct join join = {JOIN, PROTOCOL, holder->build, started->entered, group, (uint32_t)folder_size,
                            (uint32_t)started->argc, (uint32_t)started->envc, holder->past};
  const struct piece pieces[] = {{&join, sizeof join},
                                 {folder, (size_t)folder_size},
                                 {*started->argv, (size_t)(next_string(last) - *started->argv)}};
  struct rights rights = {RIGHTS_HEADER + sizeof(int), SOL_SOCKET, SCM_RIGHTS, {LISTENER}};
  const struct message message = {NULL, 0, pieces, 3, &rights, RIGHTS_HEADER + 2 * sizeof(int), 0};
  const long sent = call(__NR_sendmsg, host, &message, MSG_NOSIGNAL);
  if (failed(sent)) return sent == -EMSGSIZE ? REFUSED : -1;
  struct pollfd poll = {(int)host, POLLIN, 0};
  if (has_no_other_way(holder) ? is_silent(host, holder, turns) : !wait_and_reap(&poll, holder, (int64_t)(until - now()))) return 0;
  struct order order;
  const long length = call(__NR_recvfrom, host, &order, sizeof order, MSG_DONTWAIT, 0, 0);
  if (length != sizeof order) return -1;
  holder->host = order.value;
  return (int)order.kind;
}

/*
 * Finds a host with room, or starts one, and gives the connection to it; -1 when this process is to be a shim by itself, or
 * if it has had a host before, is to try again.
 *
 * Each host holds the lock of its number for its life: who gets the lock starts the host. The socket listens before the
 * host runs, so whoever comes meanwhile waits in its queue. A lock that is held while nothing listens is of a host that is
 * about to be started, or about to end.
 */
static long find_host(const struct started *started, struct holder *holder, uint32_t group) {
  struct stat stat;
  /* Without its standard descriptors this is nobody's shim. */
  for (int fd = 0; fd < LISTENER; fd++)
    if (failed(call(__NR_fcntl, fd, F_GETFD))) return -1;
  /* A host's standard descriptors, without which it does not start. */
  if (call(__NR_access, "/dev/null", R_OK | W_OK)) return -1;
  call(__NR_mkdir, FOLDER, 0700);
  if (failed(call(__NR_lstat, FOLDER, &stat)) || !S_ISDIR(stat.st_mode) || stat.st_uid != (uint32_t)call(__NR_geteuid))
    return -1;
  /* A holder has no other way than by this folder, which was its user's alone. Only root can put another in its place. */
  if (stat.st_mode & 077 && (!holder->past.hosts || failed(call(__NR_chmod, FOLDER, 0700)))) return -1;
  struct address address = {AF_UNIX, {0}};
  char path[sizeof address.path];
  const int is_first = !holder->past.hosts;
  uint64_t since = is_first ? started->entered : now();
  for (uint32_t slot = 0; slot < HOSTS;) {
    uint64_t timeout = START_TIMEOUT;
    struct noted noted = {0, 0};
    if (!is_first) reap(holder);
    const uint64_t kind = kind_of_host(holder->build);
    char *const end = append_number(append(append_number(append(append(path, FOLDER), "/"), kind), "-"), slot);
    append(address.path, path);
    append(end, ".lock");
    const long lock = call(__NR_open, path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    *end = 0;
    if (failed(lock)) return -1;
    if (!call(__NR_flock, lock, LOCK_EX | LOCK_NB)) {
      /* The host before this one may have taken the file away just now. */
      const int is_there = !call(__NR_fstat, lock, &stat) && stat.st_nlink;
      const long listener = call(__NR_socket, AF_UNIX, SEQPACKET | NONBLOCK, 0);
      if (is_there) {
        call(__NR_ftruncate, lock, 0);
        call(__NR_unlink, address.path);
        call(__NR_fchmod, listener, 0600); /* the mode that the name will have */
        if (!call(__NR_bind, listener, &address, sizeof address) && !call(__NR_listen, listener, BACKLOG))
          start_host(started, holder, kind, address.path, listener, lock);
      }
      close_fd(listener);
    } else {
      if (call(__NR_pread64, lock, &noted, sizeof noted, 0) > 0) {
        timeout = JOIN_TIMEOUT;
        if (noted.count >= group) {
          close_fd(lock);
          slot++;
          continue;
        }
      }
    }
    const int turns = timeout == JOIN_TIMEOUT ? ASKS : ASKS_AT_START;
    if (!is_first) timeout = holder->past.is_moved ? MOVE_TIMEOUT : patience(holder);
    const int is_late = now() - since > timeout;
    const long host = is_late ? -1 : call(__NR_socket, AF_UNIX, SEQPACKET | NONBLOCK | O_CLOEXEC, 0);
    if (failed(host)) {
      close_fd(lock);
      if (!is_late || !has_no_other_way(holder)) return -1;
      slot++;
      since = now();
      continue;
    }
    /* By another opening, which does not hold the lock: who is stopped while it waits keeps nobody from starting the next host. */
    char link[32];
    append_number(append(link, "/proc/self/fd/"), (uint64_t)lock);
    const long file = call(__NR_open, link, O_RDONLY | O_CLOEXEC);
    close_fd(lock);
    if (!call(__NR_connect, host, &address, sizeof address)) {
      int answer = is_ours(host) ? ask(host, started, holder, group, since + timeout, turns) : REFUSED;
      if (answer == 0 && has_no_other_way(holder)) {
        /* What stands in the file is the number of whoever listens, which has it for its life. */
        call(__NR_pread64, file, &noted, sizeof noted, 0);
        if (holder->is_watched && !call(__NR_fstat, file, &stat) && stat.st_nlink) kill_host(host, noted.pid);
        answer = is_silent(host, holder, 1) ? FULL : -1;
        since = now();
      }
      close_fd(file);
      if (answer == ACCEPTED) return host;
      /* That it is closed is what tells the host that nobody is left to be accepted. */
      close_fd(host);
      if (answer == 0 || (answer == REFUSED && (is_first || holder->past.is_moved))) return -1;
      if (answer == FULL || answer == REFUSED) slot++;
    } else {
      close_fd(file);
      close_fd(host);
    }
    wait_for_host(holder);
  }
  return -1;
}

/* In the child: becomes the program, or returns the error. */
static long become(const struct holder *holder, const struct order *order, const char *strings, const char **pointers,
                   const int *given, size_t count, const char *const *own_environment) {
  const uint64_t nothing[4] = {0}; /* sigset_t; struct sigaction */
  for (long signal = 1; signal <= 64; signal++) call(__NR_rt_sigaction, signal, nothing, 0, sizeof(uint64_t));
  call(__NR_rt_sigprocmask, SIG_SETMASK, nothing, 0, sizeof(uint64_t));

  /* What has come is numbered higher than LISTENER, the host's socket and the signals: no child wants so many. */
  close_from(LISTENER, CLOSE_RANGE_CLOEXEC);
  for (size_t i = 0; i < count; i++) call(__NR_dup2, given[i], i);
  set_open_files(holder->open_files);

  const char *string = strings;
  if (*string) {
    const long result = call(__NR_chdir, string);
    if (failed(result)) return result;
  }
  string = next_string(string);
  const char *const programs = string;
  for (size_t i = 0; i < order->programs; i++) string = next_string(string);
  const char **const argv = pointers;
  for (size_t i = 0; i < order->arguments; i++, string = next_string(string)) *pointers++ = string;
  *pointers++ = NULL;
  const char *const *envp = own_environment;
  /* What is containerd's alone, as ffi/process.ts has it. This array is a copy: the child's memory is its own. */
  const char **kept = (const char **)own_environment;
  for (const char *const *each = own_environment; *each; each++)
    if (!begins_with(*each, "NOTIFY_SOCKET=")) *kept++ = *each;
  *kept = NULL;
  if (order->environment != OWN_ENVIRONMENT) {
    envp = pointers;
    for (size_t i = 0; i < order->environment; i++, string = next_string(string)) *pointers++ = string;
    *pointers = NULL;
  }
  /* As execvp(3) does: one that may not be run is told of only if no other can be. */
  long error = -ENOENT;
  string = programs;
  for (size_t i = 0; i < order->programs; i++, string = next_string(string)) {
    const long result = call(__NR_execve, string, argv, envp);
    if (result == -ENOENT || result == -ENOTDIR) continue;
    error = result;
    if (result != -EACCES) break;
  }
  return error;
}

/*
 * Starts a child, this process's as any that a shim starts: what it inherits it has from here. None is started without the
 * descriptors that it is to have: `lacks` tells that not all have come.
 */
static void spawn(struct holder *holder, struct order *order, const char *strings, const char **pointers, const int *given,
                  size_t count, const char *const *environment, int lacks) {
  long child = make_room(holder, holder->count + 1);
  if (lacks) child = -EMFILE;
  if (!child) child = call(__NR_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0);
  if (!child) {
    order->error = (int32_t)become(holder, order, strings, pointers, given, count, environment);
    call(__NR_exit_group, EXIT_NOT_STARTED);
  }
  int32_t error = failed(child) ? (int32_t)child : order->error;
  if (error && !failed(child)) call(__NR_wait4, child, 0, 0, 0);
  if (!error) know(holder, (int32_t)child);
  holder->past.spawned = (struct told){SPAWNED, error ? 0 : (int32_t)child, -error, order->value};
  tell(HOST, &holder->past.spawned, NULL, 0);
}

/* Gives a descriptor the number that the host has for it, and takes it away from where it is; or gives the error back. */
static long place(struct holder *holder, long fd, int32_t number) {
  if (failed(fd)) return fd;
  if (number > holder->highest) holder->highest = number;
  if (fd == number) return fd; /* it has been opened close-on-exec */
  const long placed = call(__NR_dup3, fd, number, O_CLOEXEC);
  close_fd(fd);
  return placed;
}

/*
 * Takes one message of the host, of `length` bytes; its memory is given back, and is shared with the child it may be for.
 *
 * Returns its kind.
 */
static uint32_t obey(struct holder *holder, size_t length, const char *const *environment) {
  /* Behind it a NUL, and room for as many pointers as there can be strings. */
  const size_t pointers = (length + sizeof(void *)) & -sizeof(void *);
  const size_t size = pointers + (length + 3) * sizeof(void *);
  char *const memory = (char *)call(__NR_mmap, 0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (failed((long)memory)) {
    rest(RETRY_DELAY); /* the message is still there */
    return 0;
  }
  const struct piece piece = {memory, length};
  struct rights rights = {0};
  struct message message = {NULL, 0, &piece, 1, &rights, sizeof rights, 0};
  const long received = call(__NR_recvmsg, HOST, &message, MSG_CMSG_CLOEXEC);
  struct order *const order = (struct order *)memory;
  const char *const strings = memory + sizeof *order;
  size_t count = rights.length ? (rights.length - RIGHTS_HEADER) / sizeof(int) : 0;
  if (received < (long)sizeof *order) order->kind = 0;
  const int32_t value = order->value;
  long held = 0;
  switch (order->kind) {
  case END:
    call(__NR_exit_group, value);
    break;
  case SPAWN:
    spawn(holder, order, strings, (const char **)(memory + pointers), rights.fds, count, environment,
          message.flags & MSG_CTRUNC);
    break;
  case DROP:
    close_fd(value);
    for (int fd = value + 1; order->more; order->more >>= 1, fd++)
      if (order->more & 1) close_fd(fd);
    break;
  case DONE:
    if (value < 0) {
      holder->past.signals &= ~BIT(-value);
      break;
    }
    if (value) forget(holder, value);
    else holder->room = TOLD_AT_ONCE;
    break;
  case KEEP:
    if (count) place(holder, rights.fds[--count], value);
    break;
  case MOVE:
    if (!count) break;
    /* Out of the way of what takes its number, it may be. */
    held = call(__NR_fcntl, rights.fds[0], F_DUPFD_CLOEXEC, KEPT);
    call(__NR_dup3, EXECUTABLE, LAST_EXECUTABLE, O_CLOEXEC);
    if (rights.fds[0] != LAST_EXECUTABLE) close_fd(rights.fds[0]);
    count = 0;
    place(holder, held, EXECUTABLE);
    holder->last_build = holder->build;
    holder->was_moved = holder->past.is_moved;
    holder->build = order->build;
    holder->past.is_moved = 1;
    close_fd(HOST);
    break;
  case WATCH:
    watch(holder, value);
    break;
  case HOLD:
    holder->holds = value;
    if (!value) forget_held(holder, 0);
    break;
  case ACCEPT:
  case OPEN: {
    /* What cannot be kept is not to be opened: that it is closed again would be an end of file for somebody. */
    if (value >= 0 && (uint64_t)value >= limit_of_open_files()) {
      held = -EMFILE;
      break;
    }
    if (order->kind == ACCEPT) {
      held = call(__NR_accept4, order->from, 0, 0, NONBLOCK | O_CLOEXEC);
      break;
    }
    const long first = order->first < 0 ? -1 : call(__NR_open, strings, order->first | O_CLOEXEC, 0);
    held = order->first >= 0 && failed(first) ? first : call(__NR_open, strings, order->flags | O_CLOEXEC, 0);
    if (!failed(first)) close_fd(first);
  }
  }
  if (order->kind >= ACCEPT && order->kind <= OPEN) {
    held = place(holder, held, value);
    const struct told told = {HELD, value, failed(held) ? (int32_t)-held : 0, 0};
    struct rights given = {.fds = {(int)held}};
    tell(HOST, &told, &given, !failed(held));
  }
  while (count) close_fd(rights.fds[--count]);
  const uint32_t kind = order->kind;
  call(__NR_munmap, memory, size);
  return kind;
}

/* Has a host, which is connected, take over: hands it all that is kept. */
static void join_host(struct holder *holder, long host) {
  if (host != HOST) place(holder, host, HOST);
  /* What it has been started with besides is nobody's. */
  if (!holder->past.hosts) close_from(HOST + 1, 0);
  call(__NR_fcntl, HOST, F_SETFL, 0);
  for (int first = KEPT; first <= holder->highest; first += MAX_GIVEN) {
    struct told told = {HELD, 0, 0, 0};
    struct rights rights;
    size_t count = 0;
    for (int fd = first; fd < first + MAX_GIVEN; fd++) {
      if (failed(call(__NR_fcntl, fd, F_GETFD))) continue; /* that number is free */
      if (count) told.more |= 1 << (fd - told.what - 1);
      else told.what = fd;
      rights.fds[count++] = fd;
    }
    if (count) tell(HOST, &told, &rights, count);
  }
  /* It is told of no exit before it says so, and of all then. */
  holder->room = 0;
  for (size_t i = holder->alive; i < holder->count; i++) {
    holder->untold += holder->children[i].is_told;
    holder->children[i].is_told = 0;
  }
  holder->past.hosts++;
  holder->due = holder->asked = holder->has_reported = 0;
  holder->talks = 1;
  const struct told told = {GO, 0, 0, 0};
  tell(HOST, &told, NULL, 0);
  /* What the way here has used of the stack, below the page that this function is in. */
  call(__NR_madvise, page_down((uintptr_t)&told) - USED_STACK, USED_STACK, MADV_DONTNEED);
}

/* Gives back what is Deno's, from `image` to this code's own pages. */
static void drop_image(uintptr_t image) {
  call(__NR_munmap, image, (long)(page_down((uintptr_t)&header) - image));
}

/*
 * To be called when all that the host has said has been read. Asks it for a sign of life when that is due, and kills it when
 * it has been asked often enough. All holders ask at the same moments, so that an idle machine wakes once for all of them.
 *
 * Returns whether the host is to be taken for gone: it has been killed, and the kernel does not let it end.
 */
static int is_gone(struct holder *holder) {
  const uint64_t time = now();
  if (time < holder->due) return 0;
  /* In time in which this process has not been running, its host may not have been either. */
  const int is_late = time - holder->due > holder->turn / 2;
  holder->due = (time / holder->turn + 1 + (uint64_t)is_late) * holder->turn;
  if (is_late) holder->asked = 0;
  if (holder->asked > ASKS) return 1;
  if (holder->asked == ASKS) {
    kill_host(HOST, holder->host);
  } else {
    const struct told told = {PING, 0, 0, 0};
    const int is_alive = holder->talks;
    holder->talks = 0;
    if (is_alive) return 0;
    tell(HOST, &told, NULL, 0);
  }
  holder->asked++;
  return 0;
}

/*
 * The life of a holder: it passes on signals, tells of children that have ended, does what the host says, and finds another
 * when that has gone.
 */
__attribute__((noreturn)) static void hold(long host, const struct started *started, struct holder *holder, uint32_t group,
                                           uintptr_t image, uint64_t signals) {
  call(__NR_prctl, PR_SET_CHILD_SUBREAPER, 1, 0);
  call(__NR_fcntl, LISTENER, F_SETFD, FD_CLOEXEC);
  /* Its own descriptors are more than its children are to have. */
  holder->open_files = limit_of_open_files();
  set_open_files(UINT64_MAX);
  holder->children = holder->few;
  join_host(holder, host);
  drop_image(image);
  place(holder, call(__NR_signalfd4, -1, &signals, sizeof signals, O_NONBLOCK | O_CLOEXEC), SIGNALS);
  for (;;) {
    /* Before a message is taken: whoever has an answer knows that what had ended has been reaped, and told. */
    int has_more = reap(holder);
    tell_exits(holder);
    const long length = call(__NR_recvfrom, HOST, 0, 0, MSG_PEEK | MSG_TRUNC | MSG_DONTWAIT, 0, 0);
    if (length > 0) {
      if (obey(holder, (size_t)length, started->envp) != PONG) holder->talks = 1;
      holder->asked = 0;
      continue;
    }
    if (length == -ECONNRESET) continue; /* said once, and before what it has said last */
    const int is_watched = holder->is_watched && holder->host > 0;
    if (length != -EAGAIN || (is_watched && is_gone(holder))) {
      close_fd(HOST);
      /* Another of its holders may have been the first to kill it. */
      holder->past.is_hung = holder->asked >= ASKS - 1;
      holder->lost = now();
      while ((host = find_host(started, holder, group)) < 0) {
        call(__NR_dup3, LAST_EXECUTABLE, EXECUTABLE, O_CLOEXEC);
        holder->past.is_moved = holder->was_moved;
        holder->build = holder->last_build;
        holder->was_moved = 0;
        holder->last_build = header.build;
        reap(holder);
        wait_for_host(holder);
      }
      join_host(holder, host);
      continue;
    }
    struct signalfd_siginfo info;
    while (call(__NR_read, SIGNALS, &info, sizeof info) == sizeof info) {
      if (info.ssi_signo == SIGCHLD) {
        has_more = 1;
        continue;
      }
      const struct told told = {SIGNALLED, (int32_t)info.ssi_signo, 0, 0};
      /* The same signal is pending there. Who tells a host that does not read, waits in the end. */
      if (holder->past.signals & BIT(info.ssi_signo)) continue;
      holder->past.signals |= BIT(info.ssi_signo);
      tell(HOST, &told, NULL, 0);
    }
    if (has_more) continue;
    struct pollfd polled[2] = {{HOST, POLLIN, 0}, {SIGNALS, POLLIN, 0}};
    if (is_watched) wait_for(polled, 2, (int64_t)(holder->due - now()));
    else call(__NR_ppoll, polled, 2, 0, 0, 0);
  }
}

/* A number of the environment; `otherwise`, where there is none. */
static uint32_t number_in(const struct started *started, const char *name, uint32_t otherwise) {
  uint32_t number = otherwise;
  for (size_t i = 0; i < started->envc; i++) {
    if (!begins_with(started->envp[i], name)) continue;
    number = 0;
    const char *digit = started->envp[i];
    while (*digit++ != '=') {
    }
    if (!*digit) number = otherwise;
    while (*digit >= '0' && *digit <= '9' && number < 100000) number = number * 10 + (uint32_t)(*digit++ - '0');
    if (*digit) number = otherwise;
  }
  return number;
}

/* Whether this process is started as containerd starts a shim: with flags, and a socket that listens. */
static int may_be_hosted(const struct started *started) {
  int listens = 0;
  uint32_t size = sizeof listens;
  return header.build && started->argc > 1 && *started->argv[1] == '-' && started->argv[1][1] &&
         !call(__NR_getsockopt, LISTENER, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) && listens;
}

/* --- Copying between a pipe and a file ---------------------------------------------------------------------------------- */

/*
 * A container is given no descriptor of a file of the host, whose mode and contents it could change by /proc/self/fd: it has a
 * pipe, and a child of the shim moves the bytes (lib/container/copier.ts). It opens the file itself, for open(2), mkdir(2) and
 * write(2) may wait, and nobody else is to. It needs neither host nor shim once it runs, and ends at the end of its input.
 *
 * Started as `copy MODE PATH`, with these descriptors and no others.
 */
enum {
  COPIED, /* the pipe: what is read, or with READ what is written */
  OPENED, /* another's write end: a byte comes when the file is open, and end of file when it could not be */
};

#define COPY "copy"

/* MODE: its first byte. */
enum {
  READ = 'r',   /* PATH to the pipe */
  APPEND = 'a', /* the pipe to PATH, */
  CREATE = 'c', /* which is made, with the folders that lead to it */
};

enum {
  FILE_MODE = 0644,
  FOLDER_MODE = 0755,
  COPY_SIZE = 4 * PAGE, /* larger ones are hardly faster, and all of it is this process's own memory */
  POLLERR_OR_HUP = POLLERR | POLLHUP,
};

/* How long an output that is a FIFO waits before it is looked for a reader again, in ns. */
static const uint64_t READER_DELAY = 10000000;

/* Whether the other end of a pipe has been closed, at once or within so many ns. */
static int is_given_up(long pipe, uint64_t ns) {
  struct pollfd poll = {(int)pipe, 0, 0};
  const struct __kernel_timespec time = {0, (long)ns};
  call(__NR_ppoll, &poll, 1, &time, 0, 0);
  return poll.revents & POLLERR_OR_HUP;
}

/*
 * Makes the folders that lead to a path, whose bytes are changed for a moment.
 *
 * Returns the first error, 0 for none.
 */
static long make_folders(char *path) {
  long error = 0;
  for (char *at = path; *at; at++) {
    if (*at != '/' || at == path) continue;
    *at = 0;
    const long made = call(__NR_mkdir, path, FOLDER_MODE);
    *at = '/';
    if (failed(made) && made != -EEXIST && !error) error = made;
  }
  return error;
}

/*
 * Opens the file; or gives the error. A FIFO without a reader is waited for as open(2) does, but not longer than somebody has
 * the other end of the pipe.
 */
static long open_file(char mode, char *path) {
  const long no_folder = mode == CREATE ? make_folders(path) : 0;
  const int flags = (mode == READ ? O_RDONLY : O_WRONLY | O_APPEND) | (mode == CREATE ? O_CREAT : 0);
  for (;;) {
    const long fd = call(__NR_open, path, flags | O_NOCTTY | O_NONBLOCK | O_CLOEXEC, FILE_MODE);
    struct stat stat;
    if (!failed(fd)) {
      if (mode == READ && !call(__NR_fstat, fd, &stat) && S_ISDIR(stat.st_mode)) return -EISDIR;
      call(__NR_fcntl, fd, F_SETFL, flags & O_APPEND);
      return fd;
    }
    if (fd == -ENOENT && no_folder) return no_folder;
    const int waits = fd == -EAGAIN || (fd == -ENXIO && !call(__NR_stat, path, &stat) && S_ISFIFO(stat.st_mode));
    if (!waits || is_given_up(COPIED, READER_DELAY)) return fd;
  }
}

/* Copies until the input is at its end or nobody takes the output. Gives the error of what could not be written, 0 for none. */
static long copy_all(long from, long to, int is_input) {
  char buffer[COPY_SIZE];
  long lost = 0;
  for (;;) {
    if (is_input) {
      /* A terminal, say, may have nothing for ever, while the container ends. */
      struct pollfd polled[2] = {{(int)from, POLLIN, 0}, {(int)to, 0, 0}};
      call(__NR_ppoll, polled, 2, 0, 0, 0);
      if (polled[1].revents) return lost;
    }
    const long count = call(__NR_read, from, buffer, sizeof buffer);
    if (count == -EINTR || count == -EAGAIN) continue;
    if (count <= 0) return count ? count : lost;
    for (long at = 0; at < count;) {
      const long written = call(__NR_write, to, buffer + at, count - at);
      if (written == -EPIPE) return is_input ? lost : written;
      if (written == -EINTR) continue;
      if (written <= 0) {
        /* The disk is full, say. It is lost: the container is not to be kept waiting for room. */
        lost = written ? written : -EIO;
        break;
      }
      at += written;
    }
  }
}

/* Returns the exit status: the error of open(2), or of the last write(2) that has failed; 0 when all has been copied. */
static int copy(char mode, char *path) {
  const long file = open_file(mode, path);
  if (failed(file)) return (int)-file;
  call(__NR_chdir, "/"); /* the bundle may be unmounted */
  call(__NR_write, OPENED, "", 1);
  close_fd(OPENED);
  return (int)(mode == READ ? -copy_all(file, COPIED, 1) : -copy_all(COPIED, file, 0));
}

static int is_copier(const struct started *started) {
  return started->argc == 4 && begins_with(started->argv[1], COPY) && !started->argv[1][sizeof COPY - 1];
}

/* --- System calls that may wait ----------------------------------------------------------------------------------------- */

/*
 * mount(2), umount2(2) and open(2) of a path may wait as long as a disk or a server does not answer. A child of the container's
 * own process makes such calls (lib/container/calls.ts), from a list in a file in memory, which ffi/calls.ts writes and reads.
 * Nothing of what they are for is known here.
 *
 * Started by the name CALLS, with the file as descriptor LIST. The list is a struct step each, up to one whose number is
 * END_OF_LIST; what they refer to is behind them. All offsets are from the beginning of the file.
 */
#define CALLS "containerd-shim-calls"

enum { LIST };

enum { AS_IT_IS, ADDRESS /* of what is at that offset */, LOADED /* the int64_t at that offset */ }; /* a kind of argument */
enum { KIND_BITS = 2, KIND_MASK = 3, ARGUMENTS = 6, GOES_ON = 1 << (KIND_BITS * ARGUMENTS) };
enum { END_OF_LIST = 0, DECIMAL = -1 /* writes the second argument at the first, as text */ };

struct step {
  int32_t number; /* of the system call, or one of the above */
  uint32_t flags; /* the arguments' kinds, the first in the lowest bits; GOES_ON: the next is made though this one fails */
  uint64_t arguments[ARGUMENTS];
  uint64_t result; /* offset of the int64_t that becomes the result */
};

_Static_assert(sizeof(struct step) == 64, "ffi/calls.ts has this layout");

/* Returns the exit status: the error of the call at which it has stopped. */
static int make_calls(void) {
  struct stat stat;
  call(__NR_prctl, PR_SET_PDEATHSIG, SIGKILL); /* who is to undo it waits for its end */
  if (call(__NR_fstat, LIST, &stat)) return EXIT_NOT_STARTED;
  char *const list = (char *)call(__NR_mmap, 0, stat.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, LIST, 0);
  if (failed((long)list)) return EXIT_NOT_STARTED;
  for (const struct step *step = (const struct step *)list; step->number != END_OF_LIST; step++) {
    long values[ARGUMENTS], result = 0;
    for (int i = 0; i < ARGUMENTS; i++) {
      const uint32_t kind = step->flags >> (KIND_BITS * i) & KIND_MASK;
      values[i] = (long)step->arguments[i];
      if (kind == ADDRESS) values[i] += (long)list;
      if (kind == LOADED) values[i] = *(const int64_t *)(list + values[i]);
    }
    if (step->number == DECIMAL) append_number((char *)values[0], (uint64_t)values[1]);
    else result = call(step->number, values[0], values[1], values[2], values[3], values[4], values[5]);
    *(int64_t *)(list + step->result) = result;
    if (failed(result) && !(step->flags & GOES_ON)) return (int)-result;
  }
  return 0;
}

/* --- What Deno is started from ------------------------------------------------------------------------------------------ */

struct loaded {
  uintptr_t base;
  uintptr_t entry;
};

#define OF_GLIBC "GLIBC_PRIVATE"

/* Maps the interpreter as the kernel does (elf(5), PT_LOAD); where, is left to mmap and thus to ASLR. */
static struct loaded load_interpreter(const char *path) {
  Elf64_Ehdr file;
  Elf64_Phdr segments[MAX_INTERPRETER_HEADERS];
  const long fd = call(__NR_open, path, O_RDONLY | O_CLOEXEC);
  if (failed(fd)) fail("cannot open ", path, fd);
  const long header_bytes = call(__NR_pread64, fd, &file, sizeof file, 0);
  if (header_bytes != sizeof file || !begins_with((const char *)file.e_ident, ELFMAG) || file.e_machine != EM_X86_64 ||
      file.e_type != ET_DYN || file.e_phentsize != sizeof *segments || file.e_phnum > MAX_INTERPRETER_HEADERS)
    fail("no program interpreter: ", path, -ENOEXEC);
  const long table = file.e_phnum * sizeof *segments;
  if (call(__NR_pread64, fd, segments, table, file.e_phoff) != table)
    fail("no program interpreter: ", path, -ENOEXEC);

  uintptr_t low = UINTPTR_MAX, high = 0;
  size_t first_size = 0;
  for (size_t i = 0; i < file.e_phnum; i++) {
    if (segments[i].p_type != PT_LOAD) continue;
    const uintptr_t end = page_up(segments[i].p_vaddr + segments[i].p_memsz);
    if (page_down(segments[i].p_vaddr) < low) {
      low = page_down(segments[i].p_vaddr);
      first_size = segments[i].p_filesz;
    }
    if (end > high) high = end;
  }
  if (low >= high) fail("no program interpreter: ", path, -ENOEXEC);
  /* One reservation for all segments: what lies between them stays unusable, and nothing else can come between. */
  const long reserved = call(__NR_mmap, 0, (long)(high - low), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (failed(reserved)) fail("cannot map ", path, reserved);
  const uintptr_t base = (uintptr_t)reserved - low;

  for (size_t i = 0; i < file.e_phnum; i++) {
    const Elf64_Phdr *segment = &segments[i];
    if (segment->p_type != PT_LOAD) continue;
    const long protection = (segment->p_flags & PF_R ? PROT_READ : 0) | (segment->p_flags & PF_W ? PROT_WRITE : 0) |
                            (segment->p_flags & PF_X ? PROT_EXEC : 0);
    const uintptr_t start = base + page_down(segment->p_vaddr);
    const uintptr_t file_end = base + segment->p_vaddr + segment->p_filesz;
    const uintptr_t file_pages_end = page_up(file_end);
    const uintptr_t memory_end = page_up(base + segment->p_vaddr + segment->p_memsz);
    if (segment->p_filesz) {
      const long mapped = call(__NR_mmap, start, (long)(file_end - start), protection, MAP_PRIVATE | MAP_FIXED, fd, page_down(segment->p_offset));
      if (failed(mapped)) fail("cannot map ", path, mapped);
    }
    if (segment->p_memsz == segment->p_filesz) continue;
    /* .bss: the rest of the last page of the file is zeroed, the pages after it are anonymous. */
    if (segment->p_flags & PF_W)
      for (char *byte = (char *)file_end; byte < (char *)file_pages_end; byte++) *byte = 0;
    if (memory_end > file_pages_end) {
      const long mapped = call(__NR_mmap, file_pages_end, (long)(memory_end - file_pages_end), protection, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
      if (failed(mapped)) fail("cannot map ", path, mapped);
    }
  }
  call(__NR_close, fd);
  /* Others, in its place, would end in a crash or in hundreds of lines. The first segment has the names of symbols' versions. */
  const char *text = (const char *)base + low;
  while (!begins_with(text, OF_GLIBC))
    if (++text + sizeof OF_GLIBC > (const char *)base + low + first_size) fail("another library's loader: ", path, -ENOEXEC);
  return (struct loaded){base, base + file.e_entry};
}

/*
 * `stack` is the stack as the kernel made it: argc, argv and NULL, envp and NULL, pairs of the auxiliary vector up to AT_NULL.
 * It is left as it is, so /proc/PID/cmdline and /proc/PID/environ tell what the caller gave; a second one is built below it,
 * with pointers to the same strings and to those in the blob. Its size follows the number of arguments. Behind its auxiliary
 * vector it has a copy of the program headers, which ld.so and dl_iterate_phdr(3) go on reading for the life of the process.
 */
__attribute__((noreturn, used)) static void enter(const uintptr_t *stack) {
  const uint64_t entered = now();
  const size_t argc = stack[0]; /* may be 0 before Linux 5.18: execve(2) */
  const uintptr_t *argv = stack + 1;
  const uintptr_t *envp = argv + argc + 1;
  const uintptr_t *auxv = envp;
  while (*auxv++) {
  }
  const size_t envc = (size_t)(auxv - envp) - 1;
  size_t aux_words = 0, phnum = 0;
  const Elf64_Phdr *phdrs = NULL;
  for (;; aux_words += 2) {
    if (auxv[aux_words] == AT_PHDR) phdrs = (const Elf64_Phdr *)auxv[aux_words + 1];
    if (auxv[aux_words] == AT_PHNUM) phnum = auxv[aux_words + 1];
    if (auxv[aux_words] == AT_NULL) break;
  }
  aux_words += 2;
  const uintptr_t base = (uintptr_t)&header - header.address;

  if (argc > 2 + NEEDS && begins_with((const char *)*argv, CHILD))
    become_child((const char *const *)argv, (const char *const *)envp);
  const uint64_t signals = block_signals();
  uintptr_t image = (uintptr_t)&header;
  for (size_t i = 0; i < phnum; i++) {
    const uintptr_t start = page_down(base + phdrs[i].p_vaddr - header.bias);
    if (phdrs[i].p_type == PT_LOAD && start < image) image = start;
  }

  const struct started started = {(const char *const *)argv, (const char *const *)envp, argc, envc, entered};
  if (is_copier(&started)) {
    call(__NR_prctl, PR_SET_NAME, "shim-copy", 0);
    drop_image(image);
    call(__NR_exit_group, copy(*started.argv[2], (char *)argv[3]));
  }
  if (argc == 1 && begins_with(*started.argv, CALLS)) {
    call(__NR_prctl, PR_SET_NAME, "shim-calls", 0);
    call(__NR_exit_group, make_calls());
  }
  if (may_be_hosted(&started)) {
    const uint32_t group = number_in(&started, GROUP, DEFAULT_GROUP);
    const uint32_t watchdog = number_in(&started, WATCHDOG, DEFAULT_WATCHDOG);
    struct holder holder = {.build = header.build, .last_build = header.build, .is_watched = watchdog != 0};
    holder.turn = (watchdog ? watchdog : DEFAULT_WATCHDOG) * SECOND / ASKS;
    const long host = group > 1 ? find_host(&started, &holder, group) : -1;
    if (host >= 0) hold(host, &started, &holder, group, image, signals);
  }
  if (argc > 1 && begins_with(started.argv[1], "host")) call(__NR_prctl, PR_SET_NAME, "shim-host", 0);

  const size_t words = 1 + header.arguments + argc + 1 + header.added + VARIABLES + 1 + envc + 1 + aux_words + phnum * PHDR_WORDS;
  char variables[VARIABLES][VARIABLE_SIZE];
  describe(variables[0], ENTERED, entered);
  describe(variables[1], LIMIT, limit_of_open_files());
  describe(variables[2], TEXTS, (uintptr_t)&header + header.texts);
  describe(variables[3], BUILD, header.build);
  describe(variables[4], ARENAS, 1);
  char limits[LIMITS_SIZE];
  const int raised = raise_limits(limits);
  uintptr_t *const frame = __builtin_alloca_with_align(words * sizeof *frame, 128); /* 16 bytes, as the ABI has it */
  Elf64_Phdr *const copies = (Elf64_Phdr *)(frame + words - phnum * PHDR_WORDS);

  /*
   * The packed file says PT_NULL where PT_INTERP was, or the kernel would have entered ld.so and not us; ld.so wants it back,
   * and PT_PHDR must lead from this table to the base address: both are what ld.so finds out where the program is from. It
   * reads addresses that are relative to that base, as the symbols and the relocations that are left to it still have them.
   */
  const char *interpreter = NULL;
  for (size_t i = 0; i < phnum; i++) {
    copies[i] = phdrs[i];
    copies[i].p_vaddr -= header.bias;
    copies[i].p_paddr -= header.bias;
    if (copies[i].p_type == PT_PHDR) copies[i].p_vaddr = copies[i].p_paddr = (uintptr_t)copies - base;
    if (copies[i].p_type == PT_NULL && !interpreter) {
      copies[i].p_type = PT_INTERP;
      interpreter = (const char *)(base + copies[i].p_vaddr);
    }
  }
  if (!interpreter) fail("no program interpreter: ", "", -ENOEXEC);
  const struct loaded loaded = load_interpreter(interpreter);

  uintptr_t *out = frame + 1;
  const char *string = (const char *)&header + header.strings;
  for (size_t i = 0; i < header.arguments; i++, string = next_string(string)) *out++ = (uintptr_t)string;
  for (size_t i = header.arguments ? 1 : 0; i < argc; i++) *out++ = argv[i];
  frame[0] = (uintptr_t)(out - frame) - 1;
  *out++ = 0;

  const char *const prefixes = string;
  for (size_t i = 0; i < header.dropped; i++) string = next_string(string);
  for (size_t i = 0; i < header.added; i++, string = next_string(string)) *out++ = (uintptr_t)string;
  for (size_t i = 0; i < VARIABLES; i++) *out++ = (uintptr_t)variables[i];
  if (raised) *out++ = (uintptr_t)limits;
  for (size_t i = 0; i < envc; i++) {
    const char *prefix = prefixes;
    size_t left = header.dropped;
    while (left && !begins_with((const char *)envp[i], prefix)) {
      prefix = next_string(prefix);
      left--;
    }
    if (!left) *out++ = envp[i];
  }
  *out++ = 0;

  for (size_t i = 0; i < aux_words; i += 2) {
    uintptr_t value = auxv[i + 1];
    if (auxv[i] == AT_BASE) value = loaded.base;
    if (auxv[i] == AT_ENTRY) value = base + header.entry;
    if (auxv[i] == AT_PHDR) value = (uintptr_t)copies;
    *out++ = auxv[i];
    *out++ = value;
  }

  /* rdx is what a program registers with atexit(3), rbp marks the outermost frame: both 0 at entry. */
  __asm__ volatile("mov %0, %%rsp; xor %%edx, %%edx; xor %%ebp, %%ebp; jmp *%1"
                   :
                   : "c"(frame), "a"(loaded.entry)
                   : "memory");
  __builtin_unreachable();
}

__attribute__((naked, noreturn, used, section(".text.entry"))) void _start(void) {
  __asm__("mov %rsp, %rdi; and $-16, %rsp; call enter");
}

/*
 * The code that the kernel enters before Deno: it blocks the signals the shim takes over, so that every thread is born with
 * them blocked, lays out the arguments and the environment that the runtime is to see, and then does what the kernel would
 * have done, had the executable still named its interpreter: load ld.so and jump to it.
 *
 * No libc, no heap, no relocation, no writable byte: linked by entry.ld into one flat blob, which pack.ts appends to a copy of
 * the executable. Layouts are from elf(5), getauxval(3) and the System V ABI, AMD64 supplement (3.4.1, Process Initialization).
 */
#include <asm/errno.h>
#include <asm/resource.h>
#include <asm/signal.h>
#include <asm/unistd.h>
#include <elf.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
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
};

enum { ENTRY_OFFSET = 128 }; /* of _start from the header, also in entry.ld and pack.ts */

_Static_assert(sizeof(struct header) == 64 && sizeof(struct header) <= ENTRY_OFFSET, "pack.ts writes this layout");

/* weak: so the compiler cannot count on these values, which are written after it has run. */
__attribute__((weak, visibility("hidden"), section(".header")))
const struct header header = {.magic = "DENOENTR", .version = 2};

enum {
  EXIT_NOT_STARTED = 127, /* as a shell says of a command that it cannot run */
  PAGE = 4096,
  MAX_INTERPRETER_HEADERS = 32, /* glibc's ld.so has 11 */
  PHDR_WORDS = sizeof(Elf64_Phdr) / sizeof(uintptr_t),
};

static long syscall6(long number, long a, long b, long c, long d, long e, long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static void print(const char *text) {
  size_t length = 0;
  while (text[length]) length++;
  syscall6(__NR_write, 2, (long)text, (long)length, 0, 0, 0);
}

/* One sentence on stderr: `cannot start: <what> <path> (errno <n>)`; error is what the system call returned. */
__attribute__((noreturn)) static void fail(const char *what, const char *path, long error) {
  char digits[8];
  char *digit = digits + sizeof digits;
  *--digit = 0;
  for (unsigned long n = (unsigned long)-error & 0xffff; n || !*digit; n /= 10) *--digit = (char)('0' + n % 10);
  print("cannot start: ");
  print(what);
  print(" ");
  print(path);
  print(" (errno ");
  print(digit);
  print(")\n");
  for (;;) syscall6(__NR_exit_group, EXIT_NOT_STARTED, 0, 0, 0, 0, 0);
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
static void block_signals(void) {
  const uint64_t left_alone = BIT(SIGILL) | BIT(SIGTRAP) | BIT(SIGABRT) | BIT(SIGBUS) | BIT(SIGFPE) | BIT(SIGSEGV) |
                              BIT(SIGSYS) | BIT(SIGPROF) | BIT(SIGKILL) | BIT(SIGSTOP) | BIT(32) | BIT(33);
  const uint64_t set = ~left_alone;
  syscall6(__NR_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, sizeof set, 0, 0);
}

/*
 * What the program learns by its environment. When it was entered, in ns of CLOCK_MONOTONIC, for whoever wants to see what the
 * start costs (ffi/clock.ts). The soft limit of open files (getrlimit(2)) as the caller has set it: Deno raises
 * its own to the hard limit before the program's first line, and every child would inherit that; the program puts it back
 * (ffi/process.ts). And where the texts are that it is to read (make.ts).
 */
static const char ENTERED[] = "CONTAINERD_SHIM_ENTERED=";
static const char LIMIT[] = "CONTAINERD_SHIM_NOFILE=";
static const char TEXTS[] = "CONTAINERD_SHIM_TEXTS=";
enum { VARIABLES = 3, VARIABLE_SIZE = sizeof ENTERED + 20 }; /* the longest of them; 2^64 has 20 digits */

static void describe(char *out, const char *name, uint64_t value) {
  while (*name) *out++ = *name++;
  char digits[20];
  size_t count = 0;
  do digits[count++] = (char)('0' + value % 10);
  while (value /= 10);
  while (count) *out++ = digits[--count];
  *out = 0;
}

static uint64_t now(void) {
  struct __kernel_timespec time = {0, 0};
  syscall6(__NR_clock_gettime, CLOCK_MONOTONIC, (long)&time, 0, 0, 0, 0);
  return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t limit_of_open_files(void) {
  uint64_t limit[2] = {0, 0}; /* struct rlimit: soft, hard */
  syscall6(__NR_prlimit64, 0, RLIMIT_NOFILE, 0, (long)limit, 0, 0);
  return limit[0];
}

struct loaded {
  uintptr_t base;
  uintptr_t entry;
};

/* Maps the interpreter as the kernel does (elf(5), PT_LOAD); where, is left to mmap and thus to ASLR. */
static struct loaded load_interpreter(const char *path) {
  Elf64_Ehdr file;
  Elf64_Phdr segments[MAX_INTERPRETER_HEADERS];
  const long fd = syscall6(__NR_open, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0, 0);
  if (failed(fd)) fail("cannot open the program interpreter", path, fd);
  const long header_bytes = syscall6(__NR_pread64, fd, (long)&file, sizeof file, 0, 0, 0);
  if (header_bytes != sizeof file || !begins_with((const char *)file.e_ident, ELFMAG) || file.e_machine != EM_X86_64 ||
      file.e_type != ET_DYN || file.e_phentsize != sizeof *segments || file.e_phnum > MAX_INTERPRETER_HEADERS)
    fail("not a program interpreter for x86-64:", path, -ENOEXEC);
  const long table = file.e_phnum * sizeof *segments;
  if (syscall6(__NR_pread64, fd, (long)segments, table, (long)file.e_phoff, 0, 0) != table)
    fail("cannot read the program headers of", path, -ENOEXEC);

  uintptr_t low = UINTPTR_MAX, high = 0;
  for (size_t i = 0; i < file.e_phnum; i++) {
    if (segments[i].p_type != PT_LOAD) continue;
    const uintptr_t end = page_up(segments[i].p_vaddr + segments[i].p_memsz);
    if (page_down(segments[i].p_vaddr) < low) low = page_down(segments[i].p_vaddr);
    if (end > high) high = end;
  }
  if (low >= high) fail("nothing to load in", path, -ENOEXEC);
  /* One reservation for all segments: what lies between them stays unusable, and nothing else can come between. */
  const long reserved = syscall6(__NR_mmap, 0, (long)(high - low), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (failed(reserved)) fail("cannot reserve memory for", path, reserved);
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
      const long mapped = syscall6(__NR_mmap, (long)start, (long)(file_end - start), protection, MAP_PRIVATE | MAP_FIXED, fd,
                                   (long)page_down(segment->p_offset));
      if (failed(mapped)) fail("cannot map a segment of", path, mapped);
    }
    if (segment->p_memsz == segment->p_filesz) continue;
    /* .bss: the rest of the last page of the file is zeroed, the pages after it are anonymous. */
    if (segment->p_flags & PF_W)
      for (char *byte = (char *)file_end; byte < (char *)file_pages_end; byte++) *byte = 0;
    if (memory_end > file_pages_end) {
      const long mapped = syscall6(__NR_mmap, (long)file_pages_end, (long)(memory_end - file_pages_end), protection,
                                   MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0);
      if (failed(mapped)) fail("cannot map memory for", path, mapped);
    }
  }
  syscall6(__NR_close, fd, 0, 0, 0, 0, 0);
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
  block_signals();

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

  const size_t words = 1 + header.arguments + argc + 1 + header.added + VARIABLES + envc + 1 + aux_words + phnum * PHDR_WORDS;
  char variables[VARIABLES][VARIABLE_SIZE];
  describe(variables[0], ENTERED, entered);
  describe(variables[1], LIMIT, limit_of_open_files());
  describe(variables[2], TEXTS, (uintptr_t)&header + header.texts);
  uintptr_t *const frame = __builtin_alloca_with_align(words * sizeof *frame, 128); /* 16 bytes, as the ABI has it */
  Elf64_Phdr *const copies = (Elf64_Phdr *)(frame + words - phnum * PHDR_WORDS);
  const uintptr_t base = (uintptr_t)&header - header.address;

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
  if (!interpreter) fail("the executable names no program interpreter", "", -ENOEXEC);
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

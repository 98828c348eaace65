/* The kernel's controls, its devices, its rare system calls. */
#ifndef KERNEL_H
#define KERNEL_H

static int sysrq(void) { return opens("/proc/sysrq-trigger", O_WRONLY); }
static int core_pattern(void) { return opens("/proc/sys/kernel/core_pattern", O_WRONLY); }
static int kcore(void) { return reads("/proc/kcore"); }
static int kmsg(void) { return reads("/proc/kmsg"); }
static int slabinfo(void) { return reads("/proc/slabinfo"); }
static int iomem(void) { return reads("/proc/iomem"); }
static int boot_line(void) { return reads("/proc/cmdline"); }
static int disks(void) { return reads("/proc/diskstats"); }
static int key_list(void) { return reads("/proc/keys"); }
static int link_settings(void) { return opens("/sys/class/net/lo/mtu", O_WRONLY); }
static int efi_variables(void) { return verdict(opendir("/sys/firmware/efi/efivars") != NULL); }

static int kernel_setting(void)
{
    char text[40];
    int fd = open("/proc/sys/vm/swappiness", O_RDWR);
    ssize_t length = read(fd, text, sizeof text);
    return verdict(length > 0 && pwrite(fd, text, (size_t)length, 0) == length);
}

static int kernel_symbols(void)
{
    unsigned long address = 0;
    FILE *list = fopen("/proc/kallsyms", "r");
    return verdict(list && fscanf(list, "%lx", &address) == 1 && address);
}

static int kernel_log(void)
{
    char text[1000];
    return verdict(syscall(SYS_syslog, 3, text, sizeof text) >= 0); /* SYSLOG_ACTION_READ_ALL */
}

/* -- control groups -- */

static const char *const cgroup_roots[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids", NULL};

static int cgroup_file(const char *name, const char *text)
{
    char path[100];
    for (const char *const *root = cgroup_roots; *root; root++) {
        snprintf(path, sizeof path, "%s/%s", *root, name);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0)
            return verdict(!text || writes(fd, text));
    }
    return verdict(0);
}

static int cgroup_leave(void) { return cgroup_file("cgroup.procs", "0"); }
static int cgroup_controllers(void) { return cgroup_file("cgroup.subtree_control", NULL); }
static int cgroup_release_agent(void) { return cgroup_file("release_agent", NULL); }

/* -- keys -- */

static int key_add(void) { return verdict(syscall(SYS_add_key, "user", "mixos-escape-own", "x", 1, -3) >= 0); }

static int key_request(void)
{
    return verdict(syscall(SYS_request_key, "user", "mixos-escape", NULL, -4) >= 0 || errno == ENOKEY);
}


/* Keys belong to accounts, and a sandbox may have the account of its caller. */
static int key_read(void)
{
    char text[100] = "";
    as_account();
    long key = syscall(SYS_keyctl, 10, -4, "user", "mixos-escape", 0); /* KEYCTL_SEARCH, the user's keyring */
    return verdict(key >= 0 && syscall(SYS_keyctl, 11, key, text, sizeof text) > 0 && !strcmp(text, TOKEN));
}

static int key_session(void) { return verdict(syscall(SYS_keyctl, 1, NULL) >= 0); } /* KEYCTL_JOIN_SESSION_KEYRING */

/* -- calls -- */

static int io_uring(void) { return verdict(syscall(SYS_io_uring_setup, 1, (char[256]){0}) >= 0); }
static int user_faults(void) { return verdict(syscall(SYS_userfaultfd, 0) >= 0); }
static int kexec(void) { return past_the_check(syscall(SYS_kexec_load, 0, 0, NULL, 0)); }
static int kexec_file(void) { return past_the_check(syscall(SYS_kexec_file_load, -1, -1, 0, NULL, 0)); }
static int module(void) { return past_the_check(syscall(SYS_init_module, NULL, 0, "")); }
static int module_file(void) { return past_the_check(syscall(SYS_finit_module, -1, "", 0)); }
static int module_remove(void) { return past_the_check(syscall(SYS_delete_module, "mixos_escape", O_NONBLOCK)); }
static int restart(void) { return past_the_check(syscall(SYS_reboot, 0xfee1dead, 672274793, 0x12345678, NULL)); }
static int swap_on(void) { return past_the_check(syscall(SYS_swapon, in("shown/facts"), 0)); }
static int swap_off(void) { return past_the_check(syscall(SYS_swapoff, in("shown/facts"))); }
static int accounting(void) { return verdict(!syscall(SYS_acct, NULL)); }
static int watch_files(void) { return verdict(syscall(SYS_fanotify_init, 4, O_RDONLY) >= 0); } /* FAN_CLASS_CONTENT */
static int disk_quotas(void) { return past_the_check(syscall(SYS_quotactl, 0x800002 << 8, in("shown/disk"), 0, NULL)); }

static int perf_events(void)
{
    uint32_t attributes[32] = {[0] = 1, [1] = 128}; /* PERF_TYPE_SOFTWARE, size */
    return verdict(syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0) >= 0);
}

static int bpf_map(void)
{
    uint32_t attributes[32] = {2, 4, 4, 1}; /* BPF_MAP_TYPE_ARRAY, sizes, entries */
    return verdict(syscall(SYS_bpf, 0, attributes, sizeof attributes) >= 0);
}

static int host_name(void)
{
    struct utsname names;
    uname(&names);
    return verdict(!sethostname(names.nodename, strlen(names.nodename)));
}

static int domain_name(void) { return verdict(!setdomainname("(none)", 6)); }

static int set_time(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return verdict(!syscall(SYS_clock_settime, CLOCK_REALTIME, &now));
}

static int set_time_of_day(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return verdict(!syscall(SYS_settimeofday, &now, NULL));
}

static int bend_time(void)
{
    struct timex times = {.modes = 0};
    if (adjtimex(&times) < 0)
        return verdict(0);
    times.modes = ADJ_FREQUENCY;
    return verdict(syscall(SYS_adjtimex, &times) >= 0);
}

static int fixed_addresses(void) { return verdict(personality(ADDR_NO_RANDOMIZE) >= 0); }
static int readable_is_executable(void) { return verdict(personality(READ_IMPLIES_EXEC) >= 0); }

#ifdef __x86_64__
static int io_privilege(void) { return verdict(!syscall(SYS_iopl, 3)); }
static int io_port(void) { return verdict(!syscall(SYS_ioperm, 0x80, 1, 1)); }
static int local_descriptors(void) { return verdict(syscall(SYS_modify_ldt, 0, (char[64]){0}, 64) >= 0); }
static int calls_of_x32(void) { return verdict(syscall(0x40000000 | SYS_getpid) > 0); }

static int calls_of_32_bit(void)
{
    long number = 20; /* getpid */
    __asm__ volatile("int $0x80" : "+a"(number) : : "memory", "r8", "r9", "r10", "r11");
    errno = ENOSYS;
    return verdict(number > 0);
}
#else
static int io_privilege(void) { return say(NOT_APPLICABLE, "x86 only"); }
#define io_port io_privilege
#define local_descriptors io_privilege
#define calls_of_x32 io_privilege
#define calls_of_32_bit io_privilege
#endif

/* -- programs that nobody installed: a sandbox is no allow list of programs, unless its level is "strict" -- */

static int copies_itself(int to)
{
    char block[1 << 16];
    int from = open(in("shown/attempts"), O_RDONLY);
    for (ssize_t length; (length = read(from, block, sizeof block)) > 0;)
        if (write(to, block, (size_t)length) != length)
            return 0;
    return to >= 0;
}

static int memory_program(void)
{
    int fd = (int)syscall(SYS_memfd_create, "mixos-escape", 0);
    if (fd < 0 || !copies_itself(fd))
        return verdict(0);
    pid_t child = fork();
    if (child == 0) {
        syscall(SYS_execveat, fd, "", (char *[]){"x", "am-i-here", NULL}, (char *[]){NULL}, AT_EMPTY_PATH);
        _exit(errno);
    }
    errno = exit_of(child);
    return verdict(errno == 0);
}

static int written_program(void)
{
    unlink(in("project/left"));
    int fd = open(in("project/left"), O_WRONLY | O_CREAT | O_CLOEXEC, 0755);
    if (!copies_itself(fd))
        return verdict(0);
    close(fd);
    pid_t child = fork();
    if (child == 0) {
        execl(in("project/left"), "x", "am-i-here", NULL);
        _exit(errno);
    }
    errno = exit_of(child);
    int number = errno;
    unlink(in("project/left"));
    errno = number;
    return verdict(number == 0);
}

static int writable_code(void)
{
    return verdict(mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
}

/* -- devices -- */

#define DEVICES(X)                                                                                                   \
    X(mem, "mem") X(kmem, "kmem") X(port, "port") X(kmsg, "kmsg") X(uinput, "uinput") X(tty0, "tty0") X(ttyS0, "ttyS0") \
    X(console, "console") X(fuse, "fuse") X(kvm, "kvm") X(tun, "net/tun") X(loop, "loop-control") X(rtc, "rtc0")      \
    X(input, "input/event0") X(mapper, "mapper/control") X(hwrng, "hwrng") X(vsock, "vsock") X(ptmx_outside, "../dev/pts/0")
#define DEVICE(name, file) static int dev_##name(void) { return opens("/dev/" file, O_RDWR); }
DEVICES(DEVICE)

static int disk(void) { return opens(fact("disk"), O_RDONLY); }
static int shown_disk(void) { return opens(in("shown/disk"), O_RDONLY); }
static int shown_device(void) { return opens(in("shown/zero"), O_RDWR); }

static int disk_flush(void) { return verdict(!ioctl(open(fact("disk"), O_RDONLY), BLKFLSBUF, 0)); }

static int disk_size(void)
{
    uint64_t size;
    return verdict(!ioctl(open(fact("disk"), O_RDONLY), BLKGETSIZE64, &size));
}

/* -- terminals: put words into the mouth of whoever shares one -- */

static int own_terminal(void)
{
    int unlocked = 0, index = 0, above = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    char path[32];
    if (above < 0 || ioctl(above, TIOCSPTLCK, &unlocked) || ioctl(above, TIOCGPTN, &index))
        _exit(NOT_APPLICABLE);
    snprintf(path, sizeof path, "/dev/pts/%d", index);
    setsid();
    int terminal = open(path, O_RDWR);
    if (terminal < 0 || (ioctl(terminal, TIOCSCTTY, 0) && getsid(0) != getpid()))
        _exit(NOT_APPLICABLE);
    return terminal;
}

static int terminal_input(void) { return verdict(!ioctl(own_terminal(), TIOCSTI, "x")); }
static int terminal_input_high_bits(void) { return verdict(!syscall(SYS_ioctl, own_terminal(), TIOCSTI | 1ul << 32, "x")); }
static int terminal_console(void) { return verdict(!ioctl(own_terminal(), TIOCCONS)); }
static int terminal_discipline(void) { return verdict(!ioctl(own_terminal(), TIOCSETD, &(int){0})); }

static int terminal_linux(void)
{
    char command[8] = {6}; /* TIOCL_GETSHIFTSTATE */
    int screen = open("/dev/tty0", O_RDWR | O_NOCTTY);
    return verdict(ioctl(screen < 0 ? own_terminal() : screen, TIOCLINUX, command) >= 0);
}

#define DEVICE_ROW(name, file) {"dev-" #name, dev_##name},
static const struct attempt kernel_attempts[] = {
    {"sysrq", sysrq}, {"core-pattern", core_pattern}, {"kcore", kcore}, {"proc-kmsg", kmsg}, {"slabinfo", slabinfo},
    {"iomem", iomem}, {"boot-line", boot_line}, {"disk-figures", disks}, {"key-list", key_list},
    {"link-settings", link_settings}, {"efi-variables", efi_variables}, {"kernel-setting", kernel_setting},
    {"kernel-symbols", kernel_symbols}, {"kernel-log", kernel_log}, {"cgroup-leave", cgroup_leave},
    {"cgroup-controllers", cgroup_controllers}, {"cgroup-release-agent", cgroup_release_agent}, {"key-add", key_add},
    {"key-request", key_request}, {"key-read", key_read}, {"key-session", key_session}, {"io-uring", io_uring},
    {"userfaultfd", user_faults}, {"kexec-load", kexec}, {"kexec-file-load", kexec_file}, {"init-module", module},
    {"finit-module", module_file}, {"delete-module", module_remove}, {"reboot", restart}, {"swapon", swap_on},
    {"swapoff", swap_off}, {"acct", accounting}, {"fanotify", watch_files}, {"quotactl", disk_quotas}, {"perf-event", perf_events},
    {"bpf", bpf_map}, {"sethostname", host_name}, {"setdomainname", domain_name}, {"clock-settime", set_time},
    {"settimeofday", set_time_of_day}, {"adjtimex", bend_time}, {"no-randomisation", fixed_addresses},
    {"read-implies-exec", readable_is_executable}, {"iopl", io_privilege}, {"ioperm", io_port},
    {"modify-ldt", local_descriptors}, {"x32", calls_of_x32}, {"int-80", calls_of_32_bit}, {"memory-program", memory_program},
    {"written-program", written_program}, {"writable-code", writable_code}, DEVICES(DEVICE_ROW) {"disk", disk},
    {"shown-disk", shown_disk}, {"shown-device", shown_device}, {"disk-flush", disk_flush}, {"disk-size", disk_size},
    {"terminal-input", terminal_input}, {"terminal-input-high-bits", terminal_input_high_bits},
    {"terminal-console", terminal_console}, {"terminal-discipline", terminal_discipline}, {"terminal-linux", terminal_linux},
};

#endif

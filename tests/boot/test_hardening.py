"""What the system must not allow: asked of the kernel and of the real server, not of configuration files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buildsys.run import run
from buildsys.vm import ssh_value
from tests.boot.guest import FirstBoot, Guest
from tests.hostpackages import ROOT

SYSCTL = ROOT / "rootfs" / "skeleton" / "usr" / "lib" / "sysctl.d" / "10-hardening.conf"

# Settings that some supported kernel lacks, with the reason; any other that is missing is a mistake in the file.
SYSCTL_MAY_BE_MISSING = {
    "kernel.modules_disabled": "the kernel has no modules at all",
    "kernel.kexec_load_disabled": "the kernel has no kexec",
    "kernel.io_uring_disabled": "the kernel has no io_uring, or is older than 6.6",
    "kernel.unprivileged_bpf_disabled": "the kernel has no bpf()",
    "net.core.bpf_jit_harden": "the kernel has no BPF just-in-time compiler",
    "kernel.sysrq": "the kernel has no magic keys",
    "dev.tty.legacy_tiocsti": "older than 6.2",
    "vm.unprivileged_userfaultfd": "the kernel has no userfaultfd()",
    "kernel.oops_limit": "older than 6.2",
    "kernel.warn_limit": "older than 6.2",
    "kernel.hung_task_timeout_secs": "the kernel does not look for hung tasks",
    "vm.mmap_rnd_compat_bits": "the kernel runs no 32-bit programs",
    "kernel.perf_event_paranoid": "the kernel has no performance events",
    "kernel.core_pattern": "the kernel writes no core dumps",
    "kernel.core_uses_pid": "the kernel writes no core dumps",
    "net.ipv4.tcp_syncookies": "the kernel has no SYN cookies",
}


def mounts(guest: Guest) -> dict[str, tuple[str, str, set[str]]]:
    """Mount point → (device, type, options); the last mount on a point counts."""
    rows = [line.split()[:4] for line in guest.lines("cat /proc/mounts")]
    return {point: (device, kind, set(options.split(","))) for device, point, kind, options in rows}


def test_root_is_read_only_and_verified(guest: Guest, manifest: dict[str, Any]) -> None:
    _, kind, options = mounts(guest)["/"]
    assert "ro" in options
    assert kind in ("squashfs", "erofs")
    numbers = {line.split()[4]: line.split()[2] for line in guest.lines("cat /proc/self/mountinfo")}
    assert numbers["/"] == guest.run("cat /sys/block/dm-0/dev")
    assert guest.run("cat /sys/block/dm-0/dm/name") == "root"
    assert guest.run("cat /sys/block/dm-0/ro") == "1"
    names = guest.lines("grep -h PARTNAME= /sys/block/dm-0/slaves/*/uevent")
    assert sorted(names) == ["PARTNAME=mixos-root-a", "PARTNAME=mixos-verity-a"]
    line = guest.run("cat /proc/cmdline")
    assert manifest["image"]["root_hash"] in line
    assert "panic_on_corruption" in line
    for path in ("/probe", "/usr/probe", "/root/probe"):
        assert guest.attempt(f"touch {path}").status != 0
    assert guest.attempt("mount -o remount,rw /").status != 0


@pytest.mark.parametrize(
    ("point", "wanted"),
    [
        ("/proc", {"nosuid", "nodev", "noexec"}),
        ("/sys", {"nosuid", "nodev", "noexec"}),
        ("/dev", {"nosuid", "noexec"}),
        ("/dev/pts", {"nosuid", "noexec"}),
        ("/dev/shm", {"nosuid", "nodev", "noexec"}),
        ("/run", {"nosuid", "nodev", "noexec"}),
        ("/run/mixos", {"nosuid", "nodev", "noexec"}),
        ("/tmp", {"nosuid", "nodev", "noexec"}),
        ("/sys/firmware/efi/efivars", {"ro", "nosuid", "nodev", "noexec"}),
        ("/data", {"nosuid", "nodev", "errors=remount-ro"}),
        ("/etc", {"nosuid", "nodev", "noexec"}),
        ("/var", {"nosuid", "nodev", "noexec"}),
    ],
)
# case: H10
def test_mount_options(guest: Guest, point: str, wanted: set[str]) -> None:
    assert wanted <= mounts(guest)[point][2]


def test_nothing_else_is_mounted_more_openly(guest: Guest) -> None:
    for point, (_, kind, options) in mounts(guest).items():
        if point != "/":
            assert "nosuid" in options, point
            assert "noexec" in options or point == "/data", point
            assert "nodev" in options or kind in ("devtmpfs", "devpts"), point


def test_programs_cannot_be_brought_along(guest: Guest) -> None:
    for folder in ("/tmp", "/dev/shm", "/var/tmp", "/home/admin"):
        script = f"cp /usr/bin/busybox {folder}/probe && {folder}/probe true; code=$?; rm -f {folder}/probe; exit $code"
        assert guest.attempt(script, user="admin").status == 126, folder


def test_kernel_settings_are_in_force(guest: Guest, first: FirstBoot) -> None:
    wanted = dict(sysctl_lines(SYSCTL))
    paths = {key: "/proc/sys/" + key.replace(".", "/") for key in wanted}
    script = "; ".join(f"echo \"{key} = $(cat {path} 2>/dev/null || echo '?')\"" for key, path in paths.items())
    found = {key: " ".join(value.split()) for key, value in (line.split(" = ", 1) for line in guest.lines(script))}
    missing = {key for key, value in found.items() if value == "?"}
    assert {key: value for key, value in found.items() if key not in missing} == {
        key: value for key, value in wanted.items() if key not in missing
    }
    assert missing == set(first.status["hardening"]["sysctl_missing"])
    assert missing <= set(SYSCTL_MAY_BE_MISSING)


def sysctl_lines(path: Path) -> list[tuple[str, str]]:
    """The settings of a sysctl.d file, blanks normalised."""
    pairs = [line.split("=", 1) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return [(key.strip(), " ".join(value.split())) for key, value in pairs]


@pytest.mark.parametrize("user", ["admin", "root"])
def test_umask(guest: Guest, user: str) -> None:
    assert guest.run("umask", user) == "0027"
    assert guest.run("sh -lc umask", user) == "0027"
    assert guest.run("f=/tmp/$$; : >$f; mkdir $f.d; stat -c %a $f $f.d; rm -r $f $f.d", user).split() == ["640", "750"]


def test_no_account_has_a_password(guest: Guest) -> None:
    rows = [line.split(":") for line in guest.lines("cat /etc/shadow")]
    assert {row[0] for row in rows} == {line.split(":")[0] for line in guest.lines("cat /etc/passwd")}
    assert all(row[1][:1] in ("*", "!") for row in rows)
    assert guest.run("stat -c '%a %U' /etc/shadow") == "600 root"
    assert [row.split(":")[0] for row in guest.lines("cat /etc/passwd") if row.split(":")[2] == "0"] == ["root"]


@pytest.mark.parametrize("user", ["admin", "root", "nobody", "stranger"])
def test_passwords_are_not_even_asked_for(guest: Guest, user: str) -> None:
    options = (
        "PubkeyAuthentication=no",
        "PreferredAuthentications=password,keyboard-interactive",
        "NumberOfPasswordPrompts=1",
        "LogLevel=DEBUG1",
    )
    done = guest.connect(guest.command(user, "true", options=options))
    assert done.status == 255
    offers = [line for line in done.stderr.decode().splitlines() if "Authentications that can continue" in line]
    assert offers
    assert all(line.strip().endswith(": publickey") for line in offers)


def test_another_key_is_refused(guest: Guest, tmp_path: Path) -> None:
    key = tmp_path / "other"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    argv = guest.command("admin", "true")
    other = f"IdentityFile={ssh_value(key)}"
    argv = [other if word.startswith("IdentityFile=") else word for word in argv]
    assert other in argv
    done = guest.connect([*argv[:1], "-o", "BatchMode=yes", *argv[1:]])
    assert done.status == 255
    assert b"Permission denied (publickey)" in done.stderr


def test_what_the_ssh_server_really_uses(guest: Guest) -> None:
    lines = [line.partition(" ") for line in guest.lines("/usr/sbin/sshd -T")]
    found = {name: value for name, _, value in lines}
    assert found["passwordauthentication"] == found["kbdinteractiveauthentication"] == "no"
    assert found["permitemptypasswords"] == found["hostbasedauthentication"] == "no"
    assert found["authenticationmethods"] == "publickey"
    assert found["permitrootlogin"] in ("prohibit-password", "without-password")  # this guest's preseed asked for it
    assert found["disableforwarding"] == "yes"
    assert found["x11forwarding"] == found["allowtcpforwarding"] == found["allowagentforwarding"] == "no"
    assert found["permittunnel"] == found["gatewayports"] == found["permituserenvironment"] == "no"
    assert found["strictmodes"] == "yes"
    assert found["authorizedkeysfile"] == "/etc/ssh/authorized_keys/%u"
    assert int(found["maxauthtries"]) <= 3
    assert int(found["logingracetime"]) <= 30
    assert [value for name, _, value in lines if name == "hostkey"] == ["/etc/ssh/ssh_host_ed25519_key"]
    weak = ("cbc", "ssh-rsa,", "sha1", "md5", "3des", "arcfour", "dss", "umac-64")
    for name in ("ciphers", "macs", "kexalgorithms", "hostkeyalgorithms"):
        assert not [word for word in weak if word in found[name] + ","], found[name]


def test_host_key_is_this_devices_own(guest: Guest, manifest: dict[str, Any]) -> None:
    assert guest.run("stat -c '%a %u' /etc/ssh/ssh_host_ed25519_key") == "600 0"
    guest.run("test -s /data/overlay/etc/upper/ssh/ssh_host_ed25519_key")
    assert not [row["path"] for row in manifest["root"]["files"] if "ssh_host_" in row["path"]]


def test_no_file_gives_its_callers_more_rights(guest: Guest, manifest: dict[str, Any]) -> None:
    assert guest.lines("find / /etc /var /data -xdev -perm /6000 2>/dev/null") == []
    assert not [row["path"] for row in manifest["root"]["files"] if "security.capability" in row.get("xattrs", {})]


def test_nobody_can_write_where_others_read(guest: Guest) -> None:
    found = guest.lines("find / /etc /var /data -xdev -perm -0002 ! -type l ! -type c 2>/dev/null")
    odd = [path for path in found if "sticky" not in guest.run(f"[ -k {path} ] && echo sticky || echo open")]
    assert odd == []


def test_only_ssh_and_mdns_listen(guest: Guest) -> None:
    tcp = [line.split() for line in guest.lines("cat /proc/net/tcp /proc/net/tcp6") if ":" in line[:8]]
    assert {int(row[1].rpartition(":")[2], 16) for row in tcp if row[3] == "0A"} == {22}
    udp = [line.split() for line in guest.lines("cat /proc/net/udp /proc/net/udp6") if ":" in line[:8]]
    unconnected = {int(row[1].rpartition(":")[2], 16) for row in udp if set(row[2]) <= {"0", ":"}}
    # Above (ip_local_port_range) are the ports of clients: questions to name servers that no answer has come for.
    assert {port for port in unconnected if port < 32768} == {5353}


def test_watchdog_is_held_open(guest: Guest) -> None:
    assert guest.run("cat /sys/class/watchdog/watchdog0/state") == "active"
    assert guest.run("cat /sys/class/watchdog/watchdog0/timeout") == "60"
    script = "for f in /proc/[0-9]*/fd; do ls -l $f 2>/dev/null | grep -q /dev/watchdog0 && cat ${f%fd}comm; done; :"
    holders = guest.lines(script)
    assert holders == ["watchdog"]


def test_the_kernel_takes_no_code_at_run_time(guest: Guest) -> None:
    assert guest.run("cat /proc/modules 2>/dev/null; :") == ""
    assert "[confidentiality]" in guest.run("cat /sys/kernel/security/lockdown")
    assert guest.attempt("head -c 1 /dev/mem").status != 0
    assert guest.attempt("head -c 1 /proc/kcore").status != 0


def test_an_ordinary_account_learns_little_of_the_kernel(guest: Guest) -> None:
    assert guest.attempt("dmesg", user="admin").status != 0
    assert guest.run("grep -c -v '^0000000000000000' /proc/kallsyms 2>/dev/null || :", user="admin") in ("", "0")
    assert guest.attempt("python3 -c 'import os; os.unshare(os.CLONE_NEWUSER)'", user="admin").status != 0


def test_the_daemons_socket_is_for_its_group(guest: Guest) -> None:
    assert guest.run("stat -c '%a %U %G' /run/mixos/mixosd.sock") == "660 root mixos"

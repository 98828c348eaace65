"""The AppArmor profiles: compiled by the real parser, then asked what they allow."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Container
from pathlib import Path

import pytest

from buildsys.run import find_tool, run
from common.efi import siglist
from common.efi.additions import FOLDER, SIGNED_BY
from daemon.core.manifest import manifests
from daemon.doors.dbus import PROCESS
from daemon.install import PROGRAMS
from tests.apparmor import Policy, read_policy

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ROOT / "rootfs/apparmor"
SKELETON = ROOT / "rootfs/skeleton"
FILES = {path.stem: path for folder in (PROFILES, ROOT / "daemon") for path in folder.rglob("*.profile")}
NAMES = sorted(FILES)
CAPABILITIES = {"net_admin": 12, "sys_module": 16, "sys_rawio": 17, "sys_admin": 21, "sys_time": 25, "mknod": 27}
CAPABILITIES |= {"mac_override": 32, "mac_admin": 33, "perfmon": 38, "bpf": 39}
ENTERED = ("dbus-door", "mdns", "metrics-endpoint", "sandbox-proxy")  # by mixosd's fork server, not by a program's path
POLICY_FILES = [f"/sys/kernel/security/apparmor/.{verb}" for verb in ("load", "replace", "remove")]
SECRETS = [
    "/etc/shadow",
    "/etc/ssh/ssh_host_ed25519_key",
    "/etc/mixos/proxy.secret.toml",
    # the upper layers of the overlays: the same files again
    "/data/overlay/etc/upper/shadow",
    "/data/overlay/etc/upper/ssh/ssh_host_ed25519_key",
    "/data/overlay/var/upper/lib/mixos/vpn/wg0.key",
    "/run/mixos/volatile/etc/upper/shadow",
    "/var/lib/mixos/vpn/wg0.key",
    "/proc/kcore",
    "/dev/vda",
    "/dev/mem",
]


def build(folder: Path, profiles: Path = PROFILES, allow: Container[int] = (0,)) -> Path:
    """Run build.sh as the action does, with its fixed places moved."""
    script = (PROFILES / "build.sh").read_text()
    for place, there in {"/in/profiles": profiles, "/in/daemon": ROOT / "daemon", "/out": folder}.items():
        script = script.replace(place, str(there))
    done = run([find_tool("sh"), "-eu", "-c", script], env={"LC_ALL": "C.UTF-8"}, allow=allow)
    assert done.status in allow
    return folder / "usr/lib/mixos/apparmor"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return build(tmp_path_factory.mktemp("apparmor"))


@pytest.fixture(scope="module")
def policy(compiled) -> dict[str, Policy]:
    return {name: read_policy(compiled / f"{name}.bin") for name in NAMES}


def test_every_profile_is_compiled_and_enforced(policy):
    assert len(policy) >= 7
    for name, found in policy.items():
        assert (found.name, found.mode) == (name, 0)


def test_same_bytes_again(compiled, tmp_path):
    again = build(tmp_path)
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [
        path.read_bytes() for path in sorted(compiled.iterdir())
    ]


# case: B2
def test_every_parser_gives_the_recorded_bytes(compiled):
    """What docs/apparmor.md says of parsers. After a change of a profile: write the new digests into the file."""
    found = "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(compiled.iterdir())
    )
    assert found == Path(__file__).with_suffix(".golden").read_text()


def test_an_error_in_a_profile_ends_the_build(tmp_path):
    profiles = tmp_path / "profiles"
    shutil.copytree(PROFILES, profiles)
    (profiles / "a.profile").write_text("profile a /usr/bin/a { capability chown, }\n")
    build(tmp_path, profiles)
    (profiles / "a.profile").write_text("profile a /usr/bin/a { capability fly, }\n")
    build(tmp_path, profiles, allow=range(1, 256))


def test_profiles_attach_to_their_program_alone(policy):
    """What must be reachable in any case is confined by none, and no path by two."""
    ours = {f"/{folder}/{name}" for name, folder in PROGRAMS.items()}
    ours |= {f"/{path.relative_to(SKELETON)}" for path in SKELETON.rglob("*") if path.is_file()}
    ours |= {
        "/usr/sbin/sshd",
        "/usr/lib/ssh/sshd-session",
        "/usr/bin/busybox",
        "/usr/bin/python3.13",
        "/usr/bin/mixctl",
    }
    ours |= {"/usr/sbin/nft", "/usr/bin/dbus-daemon", "/usr/libexec/mixos/shim", "/usr/libexec/mixos/sandbox"}
    attached = {name: {path for path in ours if found.attaches(path)} for name, found in policy.items()}
    for name in (*ENTERED, "update-windows"):  # which mixos-slots enters
        assert not attached.pop(name)
    for name in attached:
        found = policy[name]
        (path,) = re.findall(rf"^profile {name} (/\S+) ", FILES[name].read_text(), re.MULTILINE)
        assert found.attaches(path)
        assert attached[name] <= {path}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mixosd"])
def test_services_reach_no_secret_and_no_policy(policy, name):
    for path in [*SECRETS, *POLICY_FILES, "/root/.ssh/id_ed25519", "/usr/bin/mixosd"]:
        if name in ("mixos-firmware", "mixos-slots") and path.startswith("/dev/vd"):
            continue  # what they are for
        assert set(policy[name].may(path, owner=True)) <= set("r" if path.startswith(("/usr/", "/root/")) else "")
    for capability in ("sys_module", "sys_rawio", "sys_admin", "mknod", "mac_override", "mac_admin", "perfmon", "bpf"):
        if (name, capability) != ("mixos-firmware", "sys_admin"):  # its mount namespace
            assert not policy[name].capabilities >> CAPABILITIES[capability] & 1


def test_what_changes_firmware_changes_databases_and_nothing_else(policy):
    found, efivars = policy["mixos-firmware"], "/sys/firmware/efi/efivars"
    vendors = {name: siglist.VARIABLES[name] for name in (*SIGNED_BY, "PK")}
    for name in SIGNED_BY:
        assert found.may(f"{efivars}/{name}-{vendors[name]}") == "rwa"
    for name in (f"PK-{vendors['PK']}", f"BootOrder-{vendors['PK']}", f"KEK-{vendors['db']}", f"db-{vendors['db']}x"):
        assert found.may(f"{efivars}/{name}") == "r"
    assert found.may("/dev/vda1") == "rk"
    assert found.may(f"{FOLDER}/0001-db.auth") == "r"
    for path in ("/usr/bin/busybox", "/data/mixos/x", "/var/lib/mixos/x", "/run/mixos/x", "/tmp/x", "/etc/mixos/x"):
        assert not set(found.may(path, owner=True)) & set("waxi")


def test_what_services_need(policy):
    assert policy["ntpd"].capabilities >> CAPABILITIES["sys_time"] & 1
    assert policy["ntpd"].may("/run/ntpd.pid") == "rwa"
    assert policy["ntpd"].may("/usr/bin/busybox") == "rmix"
    assert policy["syslogd"].may("/var/log/messages.0") == "rwak"
    assert policy["syslogd"].may("/dev/log") == "rwa"
    assert policy["udhcpc"].may("/usr/lib/mixos/init/dhcp") == "rmix"
    assert policy["udhcpc"].may("/run/mixos/dns/resolv.conf.123") == "rwak"
    assert policy["udhcpc"].may("/sys/devices/pci0000:00/0000:00:02.0/virtio0/net/eth0/mtu") == "rwa"
    assert policy["dbus-daemon"].may("/run/dbus/system_bus_socket") == "rwak"
    assert policy["dbus-daemon"].may("/usr/share/dbus-1/system.d/org.mixos.conf") == "r"
    assert policy["nft"].capabilities >> CAPABILITIES["net_admin"] & 1
    assert policy["nft"].may("/etc/mixos/rules.nft") == "r"
    assert policy["mixos-slots"].may("/dev/nvme0n1p1") == "rwak"
    assert policy["mixos-fetch"].may("/etc/ssl/certs/x.pem") == "r"
    assert policy["mdns"].may("/usr/lib/python3.13/site-packages/zeroconf/__init__.py") == "rm"
    assert policy["dbus-door"].may("/run/dbus/system_bus_socket") == "rwa"
    assert policy["sandbox-proxy"].may("/etc/resolv.conf") == "r"


@pytest.mark.parametrize("name", ENTERED)
def test_processes_of_parts_execute_nothing_and_change_nothing(policy, name):
    found = policy[name]
    assert found.capabilities == 0
    for path in ("/usr/bin/busybox", "/usr/bin/python3.13", "/usr/bin/mixosd", "/usr/libexec/mixos/sandbox", "/tmp/x"):
        assert not set(found.may(path, owner=True)) & set("xwi")
    for path in ("/etc/mixos/mdns.toml", "/run/mixos/mixosd.sock", "/var/lib/mixos/x", "/proc/1/environ", "/data/x"):
        assert found.may(path, owner=True) == ""
    assert policy["mixosd"].may("/proc/42/attr/apparmor/current") == "rwamix"


def test_what_fetches_releases_writes_nothing_and_starts_nothing(policy):
    found = policy["mixos-fetch"]
    for path in (
        "/data/mixos/update/trust/x",
        "/var/lib/mixos/x",
        "/run/mixos/mixosd.sock",
        "/tmp/x",
        "/etc/ssl/private/x",
    ):
        assert found.may(path, owner=True) == ""
    for path in ("/usr/bin/busybox", "/usr/libexec/mixos-slots", "/usr/bin/mixosd"):
        assert not set(found.may(path, owner=True)) & set("xwi")
    assert found.may("/dev/vda", owner=True) == ""


def test_the_tpm_is_for_the_program_that_keeps_the_floor_there(policy):
    assert policy["mixos-floor"].may("/dev/tpmrm0") == "rwa"
    for name in set(NAMES) - {"mixos-floor"}:
        assert "w" not in policy[name].may("/dev/tpmrm0", owner=True)
    for path in ("/dev/tpm0", "/dev/vda", "/run/mixos/mixosd.sock", "/var/lib/mixos/x", "/tmp/x"):
        assert policy["mixos-floor"].may(path, owner=True) == ""
    for path in ("/usr/bin/busybox", "/usr/libexec/mixos-slots", "/usr/bin/mixosd"):
        assert not set(policy["mixos-floor"].may(path, owner=True)) & set("xwi")


def test_every_process_of_a_part_has_its_profile_and_account():
    processes = [one.process for one in manifests() if one.process is not None] + [PROCESS]
    accounts = {line.split(":")[0] for line in (SKELETON / "etc/passwd").read_text().splitlines()}
    assert {one.profile for one in processes} == set(ENTERED)
    assert {one.account for one in processes} <= accounts
    assert {path.stem for path in (ROOT / "daemon").rglob("*.profile")} == set(ENTERED)


def test_they_are_loaded_in_one_write(compiled):
    assert (compiled / "all").read_bytes() == b"".join((compiled / f"{name}.bin").read_bytes() for name in NAMES)


def test_the_daemon_administers(policy):
    daemon = policy["mixosd"]
    for path in ("/etc/mixos/units/x.toml", "/run/mixos/mixosd.sock", "/var/lib/mixos/state", "/data/mixos/journal"):
        assert set("rwalk") <= set(daemon.may(path))
    for path in ("/sys/fs/cgroup/mixos/x/cgroup.procs", "/proc/42/oom_score_adj", "/proc/sys/net/ipv4/ip_forward"):
        assert "w" in daemon.may(path)
    assert daemon.may("/usr/bin/busybox").endswith("mix")
    for helper in ("shim", "sandbox"):
        assert daemon.may(f"/usr/libexec/mixos/{helper}").endswith("ux")
    programs = [f"/usr/libexec/mixos-{name}" for name in ("fetch", "firmware", "floor", "release", "slots")]
    for confined in ("/usr/sbin/nft", "/usr/bin/dbus-daemon", *programs):
        assert daemon.may(confined).endswith("px")
    for name in ("fetch", "floor", "release", "slots"):
        assert daemon.may(f"/usr/libexec/mixos-{name}").endswith("px")


def test_the_daemon_stays_out_of_the_kernel_and_the_disks(policy):
    daemon = policy["mixosd"]
    for path in ("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore", "/proc/kallsyms"):
        assert daemon.may(path, owner=True) == ""
    for path in ("/etc/shadow", "/data/overlay/etc/upper/shadow"):  # only a new name for nothing that it can read
        assert daemon.may(path, owner=True) == "l"
    for path in (
        "/dev/vda",
        "/dev/nvme0n1p2",
        "/dev/dm-0",
        "/usr/bin/mixosd",
        "/boot/EFI/BOOT/BOOTX64.EFI",
        *POLICY_FILES,
    ):
        assert "w" not in daemon.may(path, owner=True)
    for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger"):
        assert "w" not in daemon.may(path, owner=True)
    for capability in ("sys_module", "mknod", "mac_override", "mac_admin", "perfmon", "bpf"):
        assert not daemon.capabilities >> CAPABILITIES[capability] & 1


class Stage:
    """The init stage with its fixed places moved, and what it leaves."""

    def __init__(self, folder: Path) -> None:
        self.security = folder / "security"
        self.policy = folder / "policy"
        self.lock = folder / "lock_policy"
        self.notes = folder / "notes"
        self.run_folder = folder / "run"
        for path in (self.security, self.policy, self.run_folder):
            path.mkdir()

    def run(self) -> str:
        text = (SKELETON / "usr/lib/mixos/init/stages/12-apparmor.sh").read_text()
        for fixed, moved in (
            ("/sys/kernel/security/apparmor", self.security),
            ("/usr/lib/mixos/apparmor", self.policy),
            ("/sys/module/apparmor/parameters/lock_policy", self.lock),
        ):
            assert fixed in text
            text = text.replace(fixed, str(moved))
        run([find_tool("sh"), "-u", "-c", f'RUN={self.run_folder}\nsay() {{ echo "$*" >>{self.notes}; }}\n{text}'])
        return (self.run_folder / "apparmor").read_text()


@pytest.fixture
def stage(tmp_path):
    found = Stage(tmp_path)
    for name, size in (("one", 100), ("two", 300_000)):
        (found.policy / f"{name}.bin").write_bytes(bytes([size % 251]) * size)
    return found


def test_the_stage_loads_in_one_write_and_locks(stage):
    (stage.security / ".replace").touch()
    assert stage.run() == "loaded one two\nfailed\n"
    assert (stage.security / ".replace").read_bytes() == (stage.policy / "two.bin").read_bytes()
    assert stage.lock.read_text() == "Y\n"
    assert not stage.notes.exists()


def test_the_stage_says_what_was_refused(stage):
    (stage.security / ".replace").symlink_to("/dev/full")
    assert stage.run() == "loaded\nfailed one two\n"
    assert "one two" in stage.notes.read_text()


def test_the_stage_without_apparmor(stage):
    assert stage.run() == "loaded\nfailed\n"
    assert stage.notes.exists()
    assert not stage.lock.exists()

"""What this host lacks for building and running images, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from buildsys.execute import enter_command, host_mounts, merged_usr, spec_file
from buildsys.project import Project
from buildsys.run import ANY_STATUS, CLEAN_ENV, CommandError, run
from buildsys.sandbox.spec import SandboxSpec
from common.errors import ConfigError

MIN_PYTHON = (3, 11)
NEEDED_BYTES = 12 << 30  # sources, store and image of a cold build, with some air
RESTRICTED = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
USERNS_LIMIT = Path("/proc/sys/user/max_user_namespaces")

# program → Debian and Ubuntu package that holds it; what a build calls, then what running, flashing and signing call
TOOLS = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "patch": "patch",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "zstd": "zstd",
    "perl": "perl",
    "xz": "xz-utils",
    "bzip2": "bzip2",
    "python3": "python3",
    "apparmor_parser": "apparmor",
    "dpkg-deb": "dpkg",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sbsign": "sbsigntool",
    "openssl": "openssl",
    "gpg": "gpg",
    "gpg-agent": "gpg-agent",
}
HEADERS = {"/usr/include/gelf.h": "libelf-dev", "/usr/include/openssl/evp.h": "libssl-dev"}
FIRMWARE_PACKAGE = "ovmf"


@dataclass(frozen=True)
class Finding:
    """One check: `ok`, or what is wrong (`text`) and what to do (`remedy`). needed: does a build stop there?"""

    check: str
    ok: bool
    text: str
    remedy: str = ""
    needed: bool = True


def examine(project: Project) -> list[Finding]:
    """Every check, in the order in which a build would fail on them."""
    return [*_python(), *_tools(), _isolation(), _disk(project.cache), _kernel(project), *_machines()]


def missing_packages() -> list[str]:
    """Names of the distribution packages that hold what this host lacks, sorted."""
    lacking = {package for tool, package in TOOLS.items() if _which(tool) is None}
    lacking |= {package for header, package in HEADERS.items() if not _header(header)}
    if not _firmware():
        lacking.add(FIRMWARE_PACKAGE)
    return sorted(lacking)


def _which(tool: str) -> str | None:
    return shutil.which(tool, path=CLEAN_ENV["PATH"])


def _header(path: str) -> bool:
    multiarch = Path("/usr/include") / f"{os.uname().machine}-linux-gnu"
    return Path(path).exists() or (multiarch / Path(path).relative_to("/usr/include")).exists()


def _firmware() -> bool:
    from image.machine import FIRMWARE

    return any(Path(code).exists() for code, _ in FIRMWARE)


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    wanted = ".".join(map(str, MIN_PYTHON))
    yield Finding("python", sys.version_info >= MIN_PYTHON, f"Python {found}", f"install Python {wanted} or newer")
    lacking = [
        name
        for name in ("click", "jinja2", "pydantic", "elftools", "requests", "backports")
        if not importlib.util.find_spec(name)
    ]
    yield Finding("python packages", not lacking, ", ".join(lacking) or "all there", "run: make bootstrap")


def _tools() -> Iterator[Finding]:
    packages = missing_packages()
    lacking = [tool for tool in TOOLS if _which(tool) is None]
    lacking += [header for header in HEADERS if not _header(header)]
    remedy = f"run: sudo apt-get install --no-install-recommends {' '.join(packages)}"
    yield Finding("host programs", not lacking, f"missing: {', '.join(lacking)}" if lacking else "all there", remedy)


def _isolation() -> Finding:
    """Really enter a sandbox, and explain the refusal if there is one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "root").mkdir()
        spec = SandboxSpec(str(folder / "root"), ("/bin/true",), "/", {}, tuple(host_mounts(folder)), merged_usr())
        with spec_file(spec, folder) as descriptor:
            try:
                result = run(enter_command(descriptor), pass_fds=(descriptor,), allow=ANY_STATUS, timeout=30)
            except CommandError as error:
                return Finding("build isolation", False, error.message, _isolation_remedy())
    if result.status == 0:
        return Finding("build isolation", True, "user, mount, PID, IPC, UTS, cgroup and network namespaces work")
    return Finding("build isolation", False, result.text or f"status {result.status}", _isolation_remedy())


def _isolation_remedy() -> str:
    if _read(RESTRICTED) == "1":
        return (
            "AppArmor forbids user namespaces to ordinary programs (Ubuntu 23.10 and newer). Allow them for this boot: "
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0 (to keep it: a file in /etc/sysctl.d)"
        )
    if _read(USERNS_LIMIT) == "0":
        return "user namespaces are switched off: sudo sysctl user.max_user_namespaces=15000"
    if _read(Path("/proc/sys/kernel/unprivileged_userns_clone")) == "0":
        return "user namespaces are switched off for users: sudo sysctl kernel.unprivileged_userns_clone=1"
    return (
        "in a container, run it with namespaces and /proc unmasked (for example: podman run --security-opt unmask=ALL)"
    )


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _disk(cache: Path) -> Finding:
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("disk", False, f"{place} cannot be written", "set MIXOS_CACHE to a folder of yours")
    text = f"{free >> 30} GiB free for {cache}"
    return Finding(
        "disk", free >= NEEDED_BYTES, text, "a first build needs 12 GiB: free some, or set MIXOS_CACHE", needed=False
    )


def _kernel(project: Project) -> Finding:
    """Which kernel a build would take, and why."""
    from buildsys.fetch import Fetcher
    from buildsys.kernelsource import Chooser

    fetcher = Fetcher(project.distfiles, lambda event: None, offline=True)
    try:
        return Finding("kernel", True, Chooser.at(project, fetcher).outlook(project.config.kernel.source))
    except ConfigError as error:
        return Finding("kernel", False, error.message, error.hint or "correct it")


def _machines() -> Iterator[Finding]:
    """What `mixos run` will do: firmware and acceleration. A host without them still builds."""
    yield Finding("UEFI firmware", _firmware(), "OVMF" if _firmware() else "missing", "install: ovmf", needed=False)
    if _which("qemu-system-x86_64"):
        from image import accel

        chosen = accel.choose("auto")
        remedy = "machines are emulated, ten times slower; on your own host, enable virtualisation in its firmware"
        if Path("/dev/kvm").exists() and not os.access("/dev/kvm", os.R_OK | os.W_OK):
            remedy = "machines are emulated, ten times slower: join the group of /dev/kvm (often: sudo adduser YOU kvm)"
        yield Finding("virtualisation", chosen.name == "kvm", f"{chosen.name}: {chosen.reason}", remedy, needed=False)

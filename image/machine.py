"""The virtual machine as data, and the QEMU arguments that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from buildsys.run import find_tool
from common.errors import HostError, UsageError
from image.accel import QEMU, Acceleration, value

# Code and variable store of the firmware, by distribution; the first pair that exists is used.
FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)
# The same with Secure Boot: the code keeps its variables behind system management mode; the store is in setup mode.
SECURE_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.secboot.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
)
MONITOR = "qmp.sock"
CONSOLE = "console.sock"
SERIAL_LOG = "serial.log"
VARIABLES = "vars.fd"
TPM = "tpm.sock"
DISK_BUSES = ("virtio", "nvme", "ahci", "usb")


@dataclass(frozen=True)
class Machine:
    """What to emulate.

    disk: writable raw disk (a private copy of the image). memory: MiB. cpus: None takes two, or one when emulated.
    serial: "socket" (log file and console.sock, for detached machines), "stdio" (the caller's terminal, also logged) or
    "file" (log only). display: "none" or a QEMU display such as "gtk". ssh_port: TCP port of 127.0.0.1 forwarded to
    the guest's port 22, None without a network. disk_bus: one of DISK_BUSES. sector: bytes in a logical sector of
    `disk`; ahci has 512 only. reboot: whether a guest reboot restarts the machine (False: it ends). secure_boot:
    firmware that enforces Secure Boot once keys are enrolled. preallocate: have the memory there before it starts.
    log: a file, as large as it may get, that keeps all that is written to `disk` (QEMU's blklogwrites).
    extra: more QEMU arguments, appended as they are.
    """

    disk: Path
    memory: int = 1024
    cpus: int | None = None
    acceleration: str = "auto"
    serial: str = "socket"
    display: str = "none"
    ssh_port: int | None = None
    disk_bus: str = "virtio"
    sector: int = 512
    extra_disks: tuple[Path, ...] = ()
    tpm: bool = False
    watchdog: bool = True
    reboot: bool = True
    secure_boot: bool = False
    firmware: tuple[Path, Path] | None = None
    preallocate: bool = False
    log: Path | None = None
    extra: tuple[str, ...] = ()


def firmware(*, secure_boot: bool = False) -> tuple[Path, Path]:
    """Code and variable template of the UEFI firmware of this host. Raises HostError when there is none."""
    for code, variables in SECURE_FIRMWARE if secure_boot else FIRMWARE:
        if Path(code).exists() and Path(variables).exists():
            return Path(code), Path(variables)
    kind = " with Secure Boot" if secure_boot else ""
    raise HostError(
        f"this machine has no UEFI firmware{kind} for virtual machines (OVMF)",
        reason="firmware-missing",
        hint="install the package 'ovmf'",
    )


def arguments(machine: Machine, state: Path, acceleration: Acceleration) -> list[str]:
    """The full argv. QEMU must run with `state` as working directory: socket paths are relative, to stay short."""
    # Emulated processors that run side by side can execute code that another one is patching (the kernel's static
    # keys): now and then a boot dies of a stray int3. One emulated processor cannot.
    cpus = (1 if acceleration.name == "tcg" else 2) if machine.cpus is None else machine.cpus
    if machine.memory < 64 or not 1 <= cpus <= 64:
        raise UsageError(f"{machine.memory} MiB and {cpus} CPUs make no machine", reason="bad-machine")
    code, _ = machine.firmware or firmware(secure_boot=machine.secure_boot)
    # The kernel waits for every port of a controller, also where nothing is connected. What is added may need it.
    sata = "on" if machine.disk_bus == "ahci" or machine.extra else "off"
    smm = "on" if machine.secure_boot else "off"
    argv = [str(find_tool(QEMU)), "-name", "mixos", "-machine", f"q35,smm={smm},vmport=off,sata={sata}"]
    argv += acceleration.arguments()
    argv += ["-m", str(machine.memory), "-smp", str(cpus), "-nodefaults", "-no-user-config", "-rtc", "base=utc"]
    argv += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={value(code)}"]
    argv += ["-drive", f"if=pflash,format=raw,unit=1,file={value(state / VARIABLES)}"]
    if machine.secure_boot:  # only firmware writes its variables; sleeping (S3) would open a way around that
        argv += ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    argv += ["-device", "virtio-rng-pci", "-qmp", f"unix:{MONITOR},server=on,wait=off"]
    sectors = f"logical_block_size={machine.sector},physical_block_size={machine.sector}"
    argv += _disk(machine.disk, "disk0", machine.disk_bus, "bootindex=1", sectors, log=machine.log)
    for number, disk in enumerate(machine.extra_disks, 1):
        argv += _disk(disk, f"disk{number}", "virtio")
    argv += _serial(machine.serial) + _display(machine.display) + _network(machine.ssh_port)
    if machine.preallocate:
        argv += ["-mem-prealloc"]
    if machine.watchdog:
        argv += ["-device", "i6300esb", "-action", "watchdog=reset"]
    if machine.tpm:
        argv += ["-chardev", f"socket,id=tpm,path={TPM}", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        argv += ["-device", "tpm-crb,tpmdev=tpm0"]
    if not machine.reboot:
        argv += ["-action", "reboot=shutdown"]
    return [*argv, *machine.extra]


def _disk(path: Path, name: str, bus: str, *options: str, log: Path | None = None) -> list[str]:
    # Host page cache with the guest's flushes honoured; unmap keeps the copy sparse.
    file = f"format=raw,cache=writeback,discard=unmap,file={value(path)}"
    if log is not None:
        files = (("file", path), ("log", log))
        parts = ",".join(f"{key}.driver=file,{key}.filename={value(one)}" for key, one in files)
        file = f"driver=blklogwrites,cache=writeback,discard=unmap,{parts}"
    drive = f"if=none,id={name},{file}"
    more = "".join(f",{option}" for option in options)
    devices: dict[str, Sequence[str]] = {
        "virtio": ["-device", f"virtio-blk-pci,drive={name}{more}"],
        "nvme": ["-device", f"nvme,drive={name},serial={name}{more}"],
        "ahci": ["-device", f"ide-hd,drive={name}{more}"],
        "usb": ["-device", "qemu-xhci", "-device", f"usb-storage,drive={name}{more}"],
    }
    if bus not in devices:
        raise UsageError(f"{bus!r} is no disk bus: use one of {', '.join(DISK_BUSES)}", reason="bad-machine")
    return ["-drive", drive, *devices[bus]]


def _serial(kind: str) -> list[str]:
    backends = {
        "socket": f"socket,id=console,path={CONSOLE},server=on,wait=off,logfile={SERIAL_LOG},logappend=off",
        "stdio": f"stdio,id=console,mux=on,signal=off,logfile={SERIAL_LOG},logappend=off",
        "file": f"file,id=console,path={SERIAL_LOG}",
    }
    if kind not in backends:
        raise UsageError(f"{kind!r} is no serial console: use one of {', '.join(backends)}", reason="bad-machine")
    return ["-chardev", backends[kind], "-serial", "chardev:console"]


def _display(kind: str) -> list[str]:
    if kind == "none":
        return ["-display", "none"]
    return ["-display", kind, "-device", "virtio-vga", "-device", "qemu-xhci,id=xhci", "-device", "usb-kbd,bus=xhci.0"]


def _network(ssh_port: int | None) -> list[str]:
    if ssh_port is None:
        return ["-nic", "none"]
    # Without its option ROM the card offers no network boot, which the firmware would otherwise wait for.
    forward = f"user,id=net0,hostfwd=tcp:127.0.0.1:{ssh_port}-:22"
    return ["-netdev", forward, "-device", "virtio-net-pci,netdev=net0,romfile="]

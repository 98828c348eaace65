"""The one place that knows what an architecture is called by each tool."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import ConfigError


@dataclass(frozen=True)
class Arch:
    """An architecture and its name in every vocabulary the build speaks."""

    name: str  # ours, uname -m
    kernel: str  # ARCH= of the kernel's Makefile
    kernel_image: str  # file below arch/*/boot
    target: str  # compiler target of userland
    musl_loader: str  # path of the dynamic loader on the device
    elf_machine: str  # e_machine
    qemu: str  # system emulator
    efi_suffix: str  # BOOT<suffix>.EFI, systemd-boot<suffix>.efi
    root_type: str  # GPT type GUID of a root partition (UAPI discoverable partitions specification)
    verity_type: str  # GPT type GUID of its verity partition
    wheel_platforms: tuple[str, ...]  # pip --platform, best first


X86_64 = Arch(
    name="x86_64",
    kernel="x86_64",
    kernel_image="bzImage",
    target="x86_64-linux-musl",
    musl_loader="/lib/ld-musl-x86_64.so.1",
    elf_machine="EM_X86_64",
    qemu="qemu-system-x86_64",
    efi_suffix="x64",
    root_type="4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    verity_type="2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    wheel_platforms=("musllinux_1_2_x86_64", "musllinux_1_1_x86_64"),
)

KNOWN = {arch.name: arch for arch in (X86_64,)}


def arch(name: str) -> Arch:
    """Look an architecture up by our name for it. Raises ConfigError for one that is not supported."""
    if name not in KNOWN:
        raise ConfigError(
            f"architecture '{name}' is not supported",
            reason="arch-unknown",
            hint=f"supported: {', '.join(sorted(KNOWN))}",
        )
    return KNOWN[name]

"""mixos run"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.cli.keys import passphrase_option, private_keys, public_keys
from buildsys.config.model import parse_size
from buildsys.vm import Vm
from common.errors import UsageError
from image import accel, qemu
from image.machine import DISK_BUSES, Machine


@click.command()
@click.option("--detach", is_flag=True, help="Start in the background and return when SSH answers.")
@click.option(
    "--serial", is_flag=True, help="Show the serial console here (the default without --detach or --display)."
)
@click.option("--display", is_flag=True, help="Open a window with the machine's screen.")
@click.option("--memory", default=1024, show_default=True, type=click.IntRange(128, 1 << 20), help="MiB of RAM.")
@click.option("--cpus", type=click.IntRange(1, 64), help="Processors (default: 2, or 1 without KVM).")
@click.option("--disk-size", show_default="2G, or the image's", help="The machine's disk; first boot grows into it.")
@click.option("--disk-bus", type=click.Choice(DISK_BUSES), default="virtio", show_default=True)
@click.option(
    "--ssh-port", default=0, type=click.IntRange(0, 65535), help="Port of this host for SSH (default: a free one)."
)
@click.option("--accel", "acceleration", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option(
    "--preseed", type=click.Path(path_type=Path), help="First-boot settings (default: let this host's key in)."
)
@click.option("--tpm", is_flag=True, help="Add a TPM 2.0 (needs swtpm).")
@click.option(
    "--secure-boot", is_flag=True, help="Sign the image with the project's keys, and enforce it (mixos keys)."
)
@passphrase_option
@click.option("--fresh", is_flag=True, help="Forget the machine's disk and begin at first boot again.")
@click.option("--wait", default=600, show_default=True, help="Seconds that --detach waits for SSH.")
@json_option
@pass_context
def run(
    context: Context,
    detach: bool,
    serial: bool,
    display: bool,
    memory: int,
    cpus: int | None,
    disk_size: str | None,
    disk_bus: str,
    ssh_port: int,
    acceleration: str,
    preseed: Path | None,
    tpm: bool,
    secure_boot: bool,
    passphrase_fd: int | None,
    fresh: bool,
    wait: int,
    as_json: bool,
) -> None:
    """Boot the image in QEMU, on a disk of its own; leave the console with Ctrl-A X.

    Example: mixos run · mixos run --detach && mixos ssh -- mixctl status && mixos stop
    """
    if detach and (serial or display):
        raise UsageError("--detach goes without --serial and --display", reason="run-options")
    vm = Vm(context.project, context.project.out / "run")
    try:
        size = parse_size(disk_size) if disk_size is not None else None
    except ValueError as error:
        raise UsageError(f"--disk-size {disk_size}: {error}", reason="size-invalid") from error
    image = _signed(context, vm, passphrase_fd) if secure_boot else None
    vm.prepare(fresh=fresh, size=size, preseed=preseed, image=image)
    chosen = accel.choose(acceleration)
    print(f"acceleration: {chosen.name} ({chosen.reason})", file=sys.stderr)
    machine = Machine(
        disk=vm.disk,
        memory=memory,
        cpus=cpus,
        acceleration=chosen.name,
        serial="socket" if detach else "stdio",
        display="gtk" if display else "none",
        ssh_port=ssh_port,
        disk_bus=disk_bus,
        tpm=tpm,
        secure_boot=secure_boot,
    )
    if not detach:
        sys.exit(qemu.attach(machine, vm.state))
    running = qemu.start(machine, vm.state)
    banner = qemu.wait_ssh(running, wait)
    data = {"pid": running.pid, "ssh_port": running.ssh_port, "banner": banner, "console": str(running.serial_log)}
    emit(data, as_json, f"running (pid {running.pid}); SSH answers on 127.0.0.1:{running.ssh_port}; try: mixos ssh")


def _signed(context: Context, vm: Vm, passphrase_fd: int | None) -> Path:
    """The image with signatures by the keys of the project; firmware of a new machine is in setup mode and enrols them
    at its first start."""
    from buildsys.keys import secureboot

    public = public_keys(context)
    certificates = b"".join(secureboot.read(public, f"{role}.pem") for role in secureboot.ROLES)
    return vm.signed_image(certificates, lambda: secureboot.load(private_keys(context, passphrase_fd), public))

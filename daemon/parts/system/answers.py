"""What the methods without a dot in their name answer."""

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, JsonObject, Seconds

Pong = Annotated[Literal["pong"], "it is there"]
Word = Annotated[Literal["reboot", "poweroff"], "what init is asked for"]


class Version(TypedDict):
    """The version."""

    version: Annotated[str, "of the system; unknown when this is no device"]


class Memory(TypedDict):
    """Memory."""

    total: NotRequired[Annotated[Bytes, "of the machine"]]
    available: NotRequired[Annotated[Bytes, "what programs can have without swapping"]]
    daemon: NotRequired[Annotated[Bytes, "resident set of the daemon"]]


class Data(TypedDict):
    """The data partition."""

    persistent: Annotated[bool | None, "false: /etc and /var are in memory; null: this is no device"]
    device: NotRequired[Annotated[str, "what is mounted"]]
    type: NotRequired[Annotated[str, "the kind of file system"]]
    size: NotRequired[Annotated[Bytes, "of the file system"]]
    free: NotRequired[Annotated[Bytes, "what can still be written to it"]]


class Interface(TypedDict):
    """A network interface with hardware behind it."""

    name: Annotated[str, "as the kernel calls it"]
    mac: Annotated[str | None, "its MAC address"]
    state: Annotated[str | None, "operstate of the kernel: up, down, dormant, …"]
    addresses: Annotated[list[str], "the first IPv4 address, and all IPv6 addresses"]


class Preseed(TypedDict):
    """What became of a preseed at this boot."""

    state: Annotated[str, "applied, rejected or unknown"]
    reason: NotRequired[Annotated[str, "rejected: the stable word of the first mistake"]]
    error: NotRequired[Annotated[str, "rejected: the mistakes, a line each"]]
    changed: NotRequired[Annotated[list[str], "applied: the files that were changed"]]


class Hardening(TypedDict):
    """Protection that is in force."""

    verity: Annotated[str | None, "of the root: verified or corrupted; null without verity"]
    lockdown: Annotated[str | None, "of the kernel: none, integrity or confidentiality"]
    lsm: Annotated[list[str], "the kernel's security modules"]
    apparmor_loaded: Annotated[list[str], "AppArmor profiles that are in force"]
    apparmor_refused: Annotated[list[str], "AppArmor profiles that the kernel refused"]
    sysctl_missing: Annotated[list[str], "kernel settings that this kernel does not have"]
    sysctl_refused: Annotated[list[str], "kernel settings that the kernel refused"]
    watchdog: Annotated[str | None, "state of the hardware watchdog"]
    tainted: Annotated[str | None, "the kernel's taint flags, as a decimal number"]


class Facts(TypedDict):
    """The state of the system, without that of the daemon's parts; null or empty for what this system does not have."""

    hostname: Annotated[str | None, "the host name"]
    version: Annotated[str | None, "of the system"]
    kernel: Annotated[str | None, "the kernel's release"]
    slot: Annotated[str | None, "the slot that was booted, a or b"]
    boot_id: Annotated[str | None, "a UUID that each boot has anew"]
    uptime: Annotated[Seconds | None, "since the kernel started"]
    boot_times: Annotated[dict[str, Seconds], "step of the boot → when it ended, after the kernel's start"]
    load: Annotated[list[float], "load averages over 1, 5 and 15 minutes"]
    memory: Annotated[Memory, "the machine's, and the daemon's"]
    data: Annotated[Data, "the data partition"]
    network: Annotated[list[Interface], "interfaces with hardware behind them"]
    ssh_fingerprint: Annotated[str | None, "of the SSH host key, as ssh shows it"]
    preseed: Annotated[Preseed | None, "what became of a preseed; null when there was none at this boot"]
    hardening: Annotated[Hardening, "protection that is in force"]


class Status(Facts):
    """The state of the system and of the daemon's parts."""

    parts: Annotated[
        dict[str, JsonObject],
        "part → state (waiting, starting, running, failed, stopped), error, seconds that its start took, up_at (in "
        "seconds after the kernel's start), and facts of its own",
    ]

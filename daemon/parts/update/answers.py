"""What the methods `update.*` answer."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, Seconds, UnixTime

State = Literal["good", "trial", "bad", "empty", "uncounted"]
What = Literal[
    "installed",
    "committed",
    "failed",
    "fell-back",
    "rolled-back",
    "given-up",
    "cleared",
    "repaired",
    "firmware-changed",
    "firmware-refused",
    "refused",
]

ImageRow = TypedDict(
    "ImageRow",
    {
        "version": Annotated[str, "of the image"],
        "kernel": Annotated[str, "its release"],
        "slot": Annotated[
            str | None, "that holds its root, a or b; none: it is the rescue entry, or no slot does and it cannot boot"
        ],
        "file": Annotated[str, "on the EFI system partition"],
        "state": Annotated[State, "good: it was called good; trial: it has starts left to become so; bad: it has none"],
        "starts-left": Annotated[int | None, "until it counts as bad; none: it is not counted"],
        "starts-made": Annotated[int, "since it was last called good, or installed"],
        "running": Annotated[bool, "it was started"],
        "next": Annotated[bool, "the loader starts it next"],
        "blocked": Annotated[str | None, "why it is not started or installed again, until `update clear`"],
        "root-hash": Annotated[str | None, "of its root, in hex"],
    },
)


class HistoryRow(TypedDict):
    at: Annotated[UnixTime, "when"]
    what: Annotated[What, "what happened"]
    version: Annotated[str, "to which version"]
    slot: Annotated[str | None, "in which slot"]
    reason: Annotated[str | None, "why, for people"]


class Progress(TypedDict):
    version: Annotated[str, "that is taken"]
    slot: Annotated[str | None, "that it is in, once it is staged"]
    step: Annotated[
        Literal["before-stage", "start", "root", "kernel", "files", "verify", "staged", "before-apply"],
        "what is being done; before-stage, before-apply: programs of the release are asked whether it may be",
    ]
    done: Annotated[int, "windows of 4 MiB that are there, or programs that were asked"]
    of: Annotated[int, "of so many"]
    fetched: Annotated[Bytes, "of the bundle, so far"]
    transfer: Annotated[Bytes, "that are fetched when nothing is there yet"]


class PublicKey(TypedDict):
    key: Annotated[str, "the public part, for who makes releases: mixos-device: and base64"]


Found = Literal["sound", "damaged", "missing", "unknown"]

SlotRow = TypedDict(
    "SlotRow",
    {
        "slot": Annotated[str, "a or b"],
        "version": Annotated[str | None, "that it holds; none: nothing that is known"],
        "root-hash": Annotated[str | None, "of its root, in hex"],
        "data": Annotated[Found, "its root, read whole; unknown: it holds nothing"],
        "tree": Annotated[Found, "the verity tree beside it"],
        "kernel": Annotated[Found, "the kernel image that is kept behind the root, from which an entry is made again"],
        "entry": Annotated[Found, "of the loader"],
        "file": Annotated[str | None, "of that entry, on the EFI system partition"],
    },
)


class Report(TypedDict):
    running: Annotated[str | None, "the slot that runs"]
    problems: Annotated[list[str], "all that is wrong: where, what, how"]
    bundle: Annotated[list[str], "slots that only the bundle of what they hold repairs"]
    slots: Annotated[list[SlotRow], "what they hold"]
    unknown: Annotated[list[str], "files among the loader's entries that are not ours; they are left alone"]


class Repairing(TypedDict):
    version: Annotated[str | None, "whose bundle it is repaired by"]
    step: Annotated[Literal["start", "root", "kernel", "files", "verify", "done"], "what is being done"]
    done: Annotated[int, "windows of 4 MiB that are there, or slots that were read"]
    of: Annotated[int, "of so many"]
    fetched: Annotated[Bytes, "of the bundle, so far"]
    transfer: Annotated[Bytes, "that are fetched at most"]
    report: Annotated[Report | None, "how the disk is now; in the last item"]
    mended: Annotated[list[str], "what was wrong before and is not any more; in the last item"]


Why = Literal["runs", "older", "machine", "variant", "floor", "minimum", "blocked", "paused", "wave", "clock", "form"]

Offer = TypedDict(
    "Offer",
    {
        "version": Annotated[str, "that is offered"],
        "sequence": Annotated[int, "its number"],
        "created": Annotated[int, "seconds since 1970"],
        "kernel": Annotated[str, "release of its kernel"],
        "root-hash": Annotated[str, "of its root, in hex"],
        "bundle": Annotated[str, "file in the channel"],
        "transfer": Annotated[Bytes, "that this device fetches of it"],
        "whole": Annotated[bool, "whether it is fetched whole, since no delta begins with what runs"],
    },
)


class Candidate(TypedDict):
    version: Annotated[str, "that the channel has"]
    sequence: Annotated[int | None, "its number"]
    reason: Annotated[Why | None, "why it is not offered to this device; none: nothing speaks against it"]
    why: Annotated[str | None, "the same for people"]
    at: Annotated[int | None, "when that changes by itself, in seconds since 1970"]


class Checked(TypedDict):
    at: Annotated[UnixTime, "when the channel was asked"]
    channel: Annotated[str, "its address"]
    offer: Annotated[Offer | None, "what this device may take"]
    why: Annotated[Candidate | None, "why not the newest release for such a device"]
    candidates: Annotated[list[Candidate], "all that it has, the newest first"]
    expires: Annotated[int, "when the channel must have said it anew, in seconds since 1970"]


class ConflictRow(TypedDict):
    file: Annotated[str, "its path"]
    why: Annotated[
        Literal["default", "release"],
        "default: it was changed here, and has another default now; release: this version has its own again, and there "
        "was something else",
    ]
    version: Annotated[str, "whose content is the other one"]
    at: Annotated[UnixTime, "since when"]
    diff: Annotated[str, "from the file to the other content, unified"]


class AdditionRow(TypedDict):
    name: Annotated[str, "of the addition: its number, and the database"]
    database: Annotated[Literal["db", "dbx", "KEK"], "to which it is added"]
    state: Annotated[
        Literal["waits", "held", "refused"],
        "waits: one is added in each boot, once what runs is good and nothing is staged; held: something would not "
        "start any more; refused: firmware did not take it, and is asked again by another version",
    ]
    why: Annotated[str | None, "the same for people"]


Status = TypedDict(
    "Status",
    {
        "slot": Annotated[str | None, "that runs, a or b"],
        "version": Annotated[str | None, "that runs"],
        "state": Annotated[State, "of what runs"],
        "problem": Annotated[str | None, "what keeps it from being called good"],
        "deadline": Annotated[Seconds | None, "until the device restarts if it does not get well"],
        "next": Annotated[str | None, "the version that the loader starts next"],
        "next-slot": Annotated[str | None, "and its slot"],
        "images": Annotated[list[ImageRow], "entries of the loader, in its order"],
        "blocked": Annotated[dict[str, str], "version → why it is not installed again, until `update clear`"],
        "floor": Annotated[int, "the lowest sequence that may be installed"],
        "floor-in-tpm": Annotated[bool, "it is kept in a TPM, not on the data partition alone"],
        "floor-problem": Annotated[str | None, "why the TPM does not keep it, or that it lost it"],
        "staged": Annotated[str | None, "the version that `update apply` has the next boot start"],
        "checked": Annotated[Checked | None, "what the channel said last"],
        "trouble": Annotated[str | None, "why a release that nobody waited for was not asked for, staged or applied"],
        "taking": Annotated[Progress | None, "how far the release is that is being taken"],
        "last": Annotated[HistoryRow | None, "what happened last"],
        "data-problem": Annotated[str | None, "why settings and state are not as this version needs them"],
        "conflicts": Annotated[list[str], "files of which two versions want different contents"],
        "firmware": Annotated[list[AdditionRow], "what the image adds to Secure Boot's databases, and is not there"],
    },
)

Changed = TypedDict(
    "Changed",
    {
        "next": Annotated[str | None, "the version that the loader starts next"],
        "next-slot": Annotated[str | None, "and its slot"],
    },
)

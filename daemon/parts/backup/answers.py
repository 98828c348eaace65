"""What the methods `backup.*` answer."""

from typing import Annotated

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, UnixTime
from daemon.core.change.answers import Made

About = TypedDict(
    "About",
    {
        "format": Annotated[int, "the version of the format"],
        "mixos-version": Annotated[str, "of the system that made it"],
        "hostname": Annotated[str, "of the device that made it"],
        "created": Annotated[UnixTime, "when"],
        "secrets": Annotated[bool, "keys and passwords are in it"],
        "sections": Annotated[list[str], "what is in it"],
        "state": Annotated[dict[str, str], "unit → the folder below /var/lib that is in it"],
    },
)

Summary = TypedDict(
    "Summary",
    {
        "backup": Annotated[About, "as it says of itself"],
        "files": Annotated[int, "how many are in it"],
        "left-out": Annotated[list[str], "at most 100 names of what could not be kept"],
        "bytes": Annotated[Bytes, "of the whole"],
        "encrypted": Annotated[bool, "a passphrase opens it"],
    },
)


class Piece(TypedDict):
    """A piece of the backup."""

    data: Annotated[str, "the bytes, in base64"]


class Last(TypedDict):
    """The last item."""

    summary: Annotated[Summary, "what is in it"]


Item = Piece | Last


Told = TypedDict(
    "Told",
    {
        "dry-run": Annotated[bool, "nothing was changed"],
        "backup": Annotated[About, "as it says of itself"],
        "changed-files": Annotated[list[str], "what changes, or would"],
        "removed": Annotated[list[str], "what goes, or would"],
        "restart": Annotated[list[str], "units that must be started again by hand"],
        "reload": Annotated[bool, "unit files have changed: service.reload takes them up"],
        "reboot": Annotated[bool, "some of it takes effect at the next boot"],
    },
)


class Restored(Made, Told):
    """What was restored."""

"""What the methods `proxy.*` answer."""

from typing import Annotated

from typing_extensions import TypedDict

from daemon.core.answers import Seconds
from daemon.core.change.answers import Made

Setting = TypedDict(
    "Setting",
    {
        "http": Annotated[str | None, "the proxy for http, with stars for user and password; null for none"],
        "https": Annotated[str | None, "the same for https"],
        "socks": Annotated[str | None, "the same for everything else"],
        "no-proxy": Annotated[list[str], "what is reached without a proxy"],
        "user": Annotated[str | None, "who the device is to the proxy"],
    },
)


class Changed(Made, Setting):
    """What was done, and the setting now."""


class Fetched(TypedDict):
    """How a URL was fetched."""

    url: Annotated[str, "what was fetched"]
    proxy: Annotated[str | None, "through which proxy, with stars; null for none"]
    status: Annotated[int, "of HTTP"]
    seconds: Annotated[Seconds, "how long it took"]

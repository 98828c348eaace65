"""What the methods `transfer.*` answer."""

from typing import Annotated

from typing_extensions import TypedDict

from daemon.core.answers import Bytes


class Begun(TypedDict):
    """A new transfer."""

    id: Annotated[str, "what the call that is to have the content is given"]
    piece: Annotated[Bytes, "the most of one transfer.write"]


class Received(TypedDict):
    """What is there."""

    received: Annotated[Bytes, "from the beginning; the next piece follows it"]


class State(Received):
    """A transfer."""

    purpose: Annotated[str, "the method that is to have the content"]
    size: Annotated[Bytes, "in all"]


class Row(State):
    """A transfer."""

    id: Annotated[str, "what transfer.begin answered"]

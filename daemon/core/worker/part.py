"""A part that runs in a process of its own as a whole.

mixosd makes the part as well, and only asks it what its methods are: names, roles and models of parameters are those of
the image, not what a process says. Each call is checked and audited in mixosd, and then made in the process.
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, get_args

from pydantic import BaseModel, SecretBytes, SecretStr

from common.errors import MixosError
from daemon.core.manifest import Manifest
from daemon.core.method import Caller, Handler, Method, Role, StreamHandler
from daemon.core.part import Context, Part
from daemon.core.transfer import Content
from daemon.core.worker.channel import Handler as Call
from daemon.core.worker.child import Host
from daemon.core.worker.worker import Worker

_FOLDERS = ("run", "state", "etc", "lib", "log", "libexec", "cgroups")


class ProcessPart:
    """In mixosd: the part as others see it."""

    def __init__(self, manifest: Manifest, context: Context) -> None:
        assert manifest.process is not None
        self.name = manifest.name
        self._declared: Part = manifest.find(manifest.part)(context)
        places = {name: os.fspath(getattr(context, name)) for name in _FOLDERS}
        settings = {"part": manifest.part, "manifest": manifest.name, "places": places, "shared": context.shared}
        process = manifest.process._replace(tells=manifest.process.tells or (f"{self.name}.",))
        runs = f"{__name__}:Whole"
        self.worker = Worker(context, self.name, process, runs, settings=lambda: settings)

    def methods(self) -> Sequence[Method]:
        """Those of the part, made in its process. Raises MixosError `process-content`."""
        methods = self._declared.methods()
        for method in methods:
            if any(_holds_content(field.annotation) for field in method.params.model_fields.values()):
                message = f"{method.name} takes content, which does not go into another process"
                raise MixosError(message, reason="process-content")
        return [self._forwarded(method) for method in methods]

    async def start(self) -> None:
        """Start the process, and the part in it."""
        await self.worker.start()

    async def stop(self) -> None:
        """End both."""
        await self.worker.stop()

    def status(self) -> Mapping[str, Any]:
        """What the part said last, and the process."""
        return {**self.worker.told, "process": self.worker.status()}

    def _forwarded(self, method: Method) -> Method:
        worker = self.worker
        handler: Handler[Any, Any] | StreamHandler[Any, Any]
        if method.stream:

            async def items(caller: Caller, params: BaseModel) -> AsyncIterator[object]:
                async for item in worker.items(method.name, [list(caller), plain(params)]):
                    yield item

            handler = items
        else:

            async def call(caller: Caller, params: BaseModel) -> object:
                return await worker.call(method.name, [list(caller), plain(params)])

            handler = call
        functools.update_wrapper(handler, method.handler)  # its annotations are D-Bus signatures
        return method._replace(handler=handler)


class Whole:
    """In the process: the part."""

    def __init__(self, host: Host) -> None:
        found = host.settings
        places: dict[str, Any] = {name: Path(path) for name, path in found["places"].items()}
        context = Context(**places, shared=found["shared"], events=host.events)
        self.part: Part = Manifest(found["manifest"]).find(found["part"])(context)
        self._methods: dict[str, Method] | None = None

    def handlers(self) -> Mapping[str, Call]:
        """By the methods' names: [caller, parameters] → the answer, or the items."""
        if self._methods is None:
            self._methods = {method.name: method for method in self.part.methods()}
        return {name: functools.partial(_call, method) for name, method in self._methods.items()}

    async def start(self) -> None:
        """That of the part."""
        await self.part.start()

    async def stop(self) -> None:
        """That of the part."""
        await self.part.stop()

    def status(self) -> Mapping[str, Any]:
        """That of the part."""
        return self.part.status()


def _holds_content(annotation: Any) -> bool:
    return annotation is Content or any(map(_holds_content, get_args(annotation)))


def _call(method: Method, params: Any) -> Any:
    (role, *who), given = params
    return method.handler(Caller(Role(role), *who), method.params.model_validate(given))


def plain(params: BaseModel) -> Any:
    """Checked parameters as JSON that gives the same model again, secrets included."""
    return _plain(params.model_dump(by_alias=True, exclude_unset=True))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, SecretBytes):
        return value.get_secret_value().decode()
    if isinstance(value, Enum):
        return value.value
    return os.fspath(value) if isinstance(value, PurePath) else value

"""Action keys: what an action's result depends on, as a document, and its hash.

The document names everything that can change the output: the script's text or the Python implementation with all that
it imports from this repository, parameters, environment, links, the digests of every input (for dependencies: of their
*outputs*, so that a change that changes nothing stops there), and the host tools by content. It is stored beside the
result, so that `mixos why` can say which line of it differs.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buildsys.digest import file_sha256, frame
from buildsys.graph import Action, Call
from buildsys.run import find_tool, run
from common.errors import BuildError

REPOSITORY = Path(__file__).resolve().parent.parent
VERSION = 1  # of this encoding; a change of meaning below must change it
_INSTALLED = " (installed)"
_C_LIBRARY = re.compile(r"lib(c|m|dl|rt|pthread)\.so")
OWN_PACKAGES = ("common", "buildsys", "kernel", "rootfs", "packages", "image", "daemon")


def key_document(
    action: Action, inputs: Mapping[str, str], env: Mapping[str, str], host_tools: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that decides the output of `action`; `inputs` maps input names to content digests."""
    run: dict[str, Any]
    if isinstance(action.run, Call):
        module, _, function = action.run.function.partition(":")
        run = {
            "call": function,
            "params": dict(action.run.params),
            "code": {**implementation(module), **implementation("buildsys.worker")},
            "python": _python(),
        }
    else:
        run = {"script": action.run.text}
        if action.run.module:
            run |= {"code": implementation(action.run.module), "python": _python()}
    return {
        "version": VERSION,
        "action": action.name,
        "run": run,
        "env": {**env, **action.env},
        "links": dict(action.links),
        "inputs": dict(inputs),
        "tools": {name: host_tools[name] for name in action.tools},
    }


def _python() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def action_key(document: Mapping[str, Any]) -> str:
    """SHA-256 of the framed document, in hexadecimal."""
    return hashlib.sha256(b"mixos-action-1\0" + frame(document)).hexdigest()


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """The leaves in which two key documents differ, as 'path: old → new'."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[str] = []
        for name in sorted({*old, *new}):
            found += differences(old.get(name), new.get(name), f"{where}.{name}" if where else str(name))
        return found
    return [] if old == new else [f"{where}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    return (
        text if len(text) <= 72 else f"{len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    )


@functools.cache
def implementation(module: str) -> dict[str, str]:
    """Digests of a module's code and of everything it imports, directly or not.

    Own modules count by their normalised syntax tree (comments, docstrings and layout do not matter), other people's by
    the version installed, the standard library by the interpreter's version.
    """
    found: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in found:
            continue
        path = module_path(name)
        found[name], imports, _ = _normalised(path)
        for target in imports:
            own = _own_module(target)
            if own is not None:
                queue.append(own)
            elif target.partition(".")[0] not in sys.stdlib_module_names:
                distribution = target.partition(".")[0]
                found[f"{distribution}{_INSTALLED}"] = _installed_version(distribution)
        queue += [parent for parent in _parents(name) if parent not in found]
    return found


def own_code(module: str) -> dict[str, bytes]:
    """A module and everything of ours that it imports: path relative to the repository → its bytes.

    The very bytes that `implementation` read for the key: an edit made while a build runs belongs to the next one.
    """
    names = [name for name in implementation(module) if not name.endswith(_INSTALLED)]
    paths = [module_path(name) for name in names]
    return {str(path.relative_to(REPOSITORY)): _normalised(path)[2] for path in paths}


def module_path(name: str) -> Path:
    """The file of one of our modules. Raises BuildError when there is none."""
    base = REPOSITORY.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    raise BuildError(f"no module '{name}' in {REPOSITORY}", reason="module-missing")


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:size]) for size in range(1, len(parts))]


def _own_module(target: str) -> str | None:
    """The module of ours that an imported name lives in ('buildsys.run.run' → 'buildsys.run'), or None."""
    parts = target.split(".")
    if parts[0] not in OWN_PACKAGES:
        return None
    while parts:
        base = REPOSITORY.joinpath(*parts)
        if base.with_suffix(".py").is_file() or (base / "__init__.py").is_file():
            return ".".join(parts)
        parts.pop()
    return None


@functools.cache
def _installed_version(module: str) -> str:
    names = importlib.metadata.packages_distributions().get(module, [])
    return ",".join(sorted(f"{name}=={importlib.metadata.version(name)}" for name in names)) or "unknown"


@functools.cache
def _normalised(path: Path) -> tuple[str, list[str], bytes]:
    """The digest of a file's syntax tree without docstrings, the dotted names it imports anywhere, and its bytes."""
    data = path.read_bytes()
    tree = ast.parse(data, str(path))
    imports: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            imports += [f"{node.module}.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports, data


@functools.cache
def tool_digest(name: str) -> str:
    """The SHA-256 of a host program's file with the libraries that it loads, since what compresses or computes is often
    there; for gcc also of the compiler proper, which its driver only starts.

    Raises HostError when the program is missing.
    """
    tool = find_tool(name).resolve()
    programs = [tool]
    if name == "gcc":
        programs.append(Path(run([tool, "-print-prog-name=cc1"], timeout=10).text))
    files = [*programs, *sorted({library for program in programs for library in _libraries(program)})]
    digests = [file_sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _libraries(program: Path) -> list[Path]:
    """The shared libraries that a program loads at its start, without the C library: that is replaced with every
    security update, and computes no output. None for a script or a static program."""
    listed = run([find_tool("ldd"), program], allow=(0, 1), timeout=10)
    found = re.findall(r"^\s*(\S+) => (/\S+) \(0x", listed.text, re.MULTILINE) if listed.status == 0 else []
    return [Path(path).resolve() for name, path in found if not _C_LIBRARY.match(name)]

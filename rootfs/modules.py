"""Which modules Python programs need: the imports in their sources, followed. Nothing is executed.

What stands below `if TYPE_CHECKING:` does not count, and all else does, also within functions. An import that leads
nowhere is one that its module can do without. A package that is not of the standard library or ours is taken whole:
such packages import by name what they have.

Run by the interpreter that is to run the programs, since it alone knows its language: standard library only, `main`.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path


def module_name(path: str) -> str | None:
    """The module that a file is, by its path below a folder of modules; None for other files."""
    stem, dot, suffix = path.rpartition(".")
    if suffix == "so":
        return stem.partition(".")[0].replace("/", ".")
    if not dot or suffix != "py":
        return None
    return stem.removesuffix("/__init__").replace("/", ".")


def needed(
    programs: Iterable[str],
    always: Iterable[str],
    modules: Mapping[str, Path],
    whole: Callable[[str], Iterable[str]],
    without: Set[str],
) -> set[str]:
    """The modules that sources (`programs`, text) need, and what those need.

    always: modules that are needed in any case. modules: all there are, and their files. whole: for a module, others
    that are taken with it. without: modules, with what is in them, that are left out wherever they are imported.
    """
    found: set[str] = set()
    waiting = [name for text in programs for name in _imports(text, "", False)] + list(always)
    while waiting:
        name = waiting.pop()
        for one in _chain(name):
            if one in without:
                break
            if one not in modules or one in found:
                continue
            found.add(one)
            waiting.extend(whole(one))
            path = modules[one]
            if path.suffix == ".py":
                waiting.extend(_imports(path.read_text("utf-8"), one, path.name == "__init__.py"))
    return found


def _chain(name: str) -> Iterator[str]:
    """a.b.c → a, a.b, a.b.c."""
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def _imports(text: str, module: str, is_package: bool) -> Iterator[str]:
    """Names of modules, and of what may be one, that a source imports."""
    folder = module if is_package else module.rpartition(".")[0]
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _for_types(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = folder.split(".")[: len(folder.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def _for_types(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def main(root: Path, programs: list[str], always: list[str], without: list[str]) -> None:
    """Print the files, relative to `root`, of the modules that programs (their text) need, as JSON."""
    library = next(iter(root.glob("usr/lib/python3.*")))
    third = library / "site-packages"
    modules: dict[str, Path] = {}
    for folder in (root / "usr/lib/mixos/python", library, library / "lib-dynload", third):
        for path in sorted(folder.rglob("*")):
            if folder == library and path.relative_to(library).parts[0] in ("site-packages", "lib-dynload"):
                continue
            if name := module_name(path.relative_to(folder).as_posix()):
                modules.setdefault(name, path)
    families: dict[str, list[str]] = {}
    for name, path in modules.items():
        if path.is_relative_to(third):
            families.setdefault(name.partition(".")[0], []).append(name)
    found = needed(programs, always, modules, lambda one: families.get(one, ()), frozenset(without))
    json.dump(sorted(modules[name].relative_to(root).as_posix() for name in found), sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), **json.load(sys.stdin))

"""packages/recipes/<name>/recipe.toml: how one package is built, and what of the result goes into it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from common.errors import ConfigError
from common.tomlfile import Strict, load

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]{0,60}$")]
# A place in the sandbox's root where a link may stand: absolute, and no component that leads elsewhere.
LinkPath = Annotated[str, StringConstraints(pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+$")]
Mode = Annotated[str, StringConstraints(pattern=r"^[0-7]{4}$")]


class Attribute(Strict):
    """What a path has other than root:root and the mode it was built with. xattrs: name → base64."""

    path: str
    mode: Mode | None = None
    owner: Annotated[int, Field(ge=0, le=65535)] = 0
    group: Annotated[int, Field(ge=0, le=65535)] = 0
    xattrs: dict[str, str] = Field(default_factory=dict)


class ElfWaiver(Strict):
    """A file that may break one rule for ELF files in the image (rules: packages/mix/elf.py), and why."""

    path: str
    problem: str
    reason: Annotated[str, StringConstraints(min_length=10)]


class Files(Strict):
    """exclude: globs of the build's output that stay out of the package (headers, static libraries, documentation)."""

    exclude: tuple[str, ...] = ()


class Recipe(Strict):
    """One package. Sources and the outputs of build-depends are seen at /in/<name>; the script installs into /out."""

    name: Name
    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+~_-]{0,60}$")]
    summary: Annotated[str, StringConstraints(min_length=1, max_length=120)]
    license: str
    homepage: str
    sources: tuple[Name, ...] = ()
    build_depends: tuple[Name, ...] = ()
    depends: tuple[Name, ...] = ()
    links: dict[LinkPath, str] = Field(default_factory=dict)
    env: dict[str, str] = Field(default_factory=dict)
    build: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")] = "build.sh"
    package: bool = True  # false: only used by other builds
    files: Files = Files()
    attributes: tuple[Attribute, ...] = ()
    elf_waivers: tuple[ElfWaiver, ...] = ()


class Recipes(dict[str, tuple[Path, Recipe]]):
    """All recipes by name, each with its folder."""

    def need(self, name: str, wanted_by: str) -> tuple[Path, Recipe]:
        """The recipe of that name. Raises ConfigError that names who wants it and what may have been meant."""
        if name not in self:
            close = difflib.get_close_matches(name, self, n=1)
            raise ConfigError(
                f"{wanted_by}: there is no recipe '{name}'",
                reason="recipe-missing",
                hint=f"did you mean '{close[0]}'?" if close else f"recipes: {', '.join(sorted(self))}",
            )
        return self[name]


def load_recipes(folder: Path) -> Recipes:
    """Read every recipe below `folder`. Raises ConfigError for a malformed one or a name that is not its folder's."""
    recipes = Recipes()
    for path in sorted(folder.glob("*/recipe.toml")):
        recipe = load(path, Recipe)
        if recipe.name != path.parent.name:
            raise ConfigError(
                f"{path}: name = '{recipe.name}', but its folder is '{path.parent.name}'", reason="recipe-name"
            )
        if not (path.parent / recipe.build).is_file():
            raise ConfigError(
                f"{path}: build = '{recipe.build}': there is no such file beside it", reason="recipe-build"
            )
        recipes[recipe.name] = (path.parent, recipe)
    return recipes


def closure(recipes: Recipes, names: tuple[str, ...], wanted_by: str) -> list[str]:
    """`names` and everything they depend on at run time, dependencies first, each once."""
    order: list[str] = []
    state: dict[str, bool] = {}

    def visit(name: str, by: str, trail: tuple[str, ...]) -> None:
        if state.get(name):
            return
        if name in state:
            cycle = " → ".join([*trail[trail.index(name) :], name])
            raise ConfigError(f"packages depend on each other: {cycle}", reason="recipe-cycle")
        state[name] = False
        for dependency in recipes.need(name, by)[1].depends:
            visit(dependency, f"recipe '{name}'", (*trail, name))
        state[name] = True
        order.append(name)

    for name in names:
        visit(name, wanted_by, ())
    return order


Dependencies = Mapping[str, tuple[str, ...]]

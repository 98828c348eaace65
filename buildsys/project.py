"""One checkout and its surroundings: where its files are, where the cache is, what the user asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from buildsys.arch import Arch, arch
from buildsys.config.model import MixosToml
from buildsys.config.recipe import Recipes, load_recipes
from buildsys.files import cache_root, named_folder
from buildsys.lock import Lock, load_lock
from common.errors import ConfigError
from common.positions import Locator
from common.settings.model import Settings
from common.tomlfile import load, read_text


@dataclass(frozen=True)
class Project:
    """A checkout. Everything read from it is read once, and nothing is written but results for people, into `out`."""

    root: Path
    config_file: Path
    out: Path

    @classmethod
    def at(cls, root: Path, config: Path | None = None, out: Path | None = None) -> Project:
        """The project in folder `root`, configured by `config` or its mixos.toml. out: by default what MIXOS_OUT names,
        else out/ in `root`. Raises HostError (folder-unknown)."""
        out = out or named_folder("MIXOS_OUT") or root / "out"
        return cls(root.absolute(), (config or root / "mixos.toml").absolute(), out.absolute())

    @cached_property
    def config(self) -> MixosToml:
        """mixos.toml, checked. Raises ConfigError."""
        if not self.config_file.exists():
            hint = "run in the checkout, or name it: mixos -C FOLDER, or the file: mixos --config FILE"
            raise ConfigError(f"{self.config_file}: no such file", reason="config-missing", hint=hint)
        return load(self.config_file, MixosToml)

    @cached_property
    def lock(self) -> Lock:
        """sources.lock, checked. Raises ConfigError."""
        return load_lock(self.root / "sources.lock")

    @cached_property
    def recipes(self) -> Recipes:
        """All recipes, checked. Raises ConfigError."""
        return load_recipes(self.root / "packages" / "recipes")

    @cached_property
    def settings(self) -> Settings:
        """The settings that devices start with, checked. Raises ConfigError."""
        from rootfs.basefiles import read_settings  # its template engine is slow to import, and most verbs need none

        places = Locator(read_text(self.config_file))
        where = str(self.config_file)
        return read_settings(self.config.settings, where, lambda path: places.find(f"settings.{path}"))

    @property
    def arch(self) -> Arch:
        """The architecture the image is for."""
        return arch(self.config.machine.arch)

    @property
    def cache(self) -> Path:
        """Where sources and build results are kept, outside the checkout."""
        return cache_root()

    @property
    def distfiles(self) -> Path:
        """Where source files are kept, named by their hash."""
        return named_folder("MIXOS_DISTFILES") or self.cache / "distfiles"

    @property
    def keys(self) -> Path:
        """The folder with what is public of the keys that sign releases."""
        return self.root / self.config.updates.keys

    @property
    def image_file(self) -> Path:
        """The disk image that `make image` leaves."""
        image = self.config.image
        return self.out / f"{image.name}-{image.version}-{self.arch.name}.img"

"""From configuration to the graph of actions: what an image is made of, readable from top to bottom.

    recipe-<name>  →  package-<name>      ─┐
    daemon    →  package-mixos-daemon     ─┤
    native    →  package-mixos-native     ─┼→  rootfs  →  root-image  →  verity  →  uki  →  disk
    apparmor  →  package-mixos-apparmor   ─┤                                       ↑
    base-files                            ─┘                                       │
    kernel-config  →  kernel  ─────────────────────────────────────────────────────┘

    rootfs  →  initramfs  →  rescue  →  disk

Building a plan executes nothing and reads only files of the checkout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from buildsys.config.recipe import Recipe, closure
from buildsys.graph import Action, Call, FromAction, FromPath, FromSource, Input, Plan, Script
from buildsys.kernelsource import KernelChoice
from buildsys.project import Project
from common.errors import ConfigError
from common.positions import nearest, positions
from common.tomlfile import read_text
from kernel.kconfig import read_fragments
from kernel.waivers import check_waivers, ending, read_waivers

KERNEL_TOOLS = ("gcc", "ld", "make", "patch", "flex", "bison", "bc", "perl", "zstd", "sh")
RECIPE_TOOLS = ("make", "perl", "sed", "tar", "sh")
# What a profile adds to the kernel's command line: debug shows every message of the kernel on the console.
PROFILE_WORDS: dict[str, tuple[str, ...]] = {"release": (), "debug": ("ignore_loglevel", "printk.time=1")}
# Packages that are built from this repository.
OWN_PACKAGES = ("base-files", "mixos-apparmor", "mixos-daemon", "mixos-native")
# Recipes without which they are no system, and why; what a service of [services] needs besides.
REQUIRED = {
    "busybox": "init",
    "cpython": "the daemon",
    "python-runtime": "the daemon",
    "e2fsprogs": "the data partition",
}
SERVICE_NEEDS = {"sshd": "openssh"}
IMAGE_TARGET = "disk"


@dataclass(frozen=True)
class KernelInput:
    """The kernel a plan is for: where its source comes from, and the decision behind it."""

    choice: KernelChoice
    source: Input


def image_plan(project: Project, kernel: KernelInput) -> Plan:
    """Every action of an image. Raises ConfigError for recipes or packages that do not exist."""
    return Plan.of(
        [
            *_kernel(project, kernel),
            *_recipes(project),
            *_own_packages(project, kernel),
            *_root(project),
            *_disk(project),
        ]
    )


def notices(project: Project, today: date) -> list[str]:
    """What whoever builds should know of the plan on that day, though nothing is wrong yet."""
    text = ending(read_waivers(project.root / "kernel" / "waivers.toml"), today)
    return [text] if text else []


def _kernel(project: Project, kernel: KernelInput) -> Iterator[Action]:
    folder = project.root / "kernel"
    # A waiver ends on a day of the calendar: checked here, because an action must not know what day it is.
    check_waivers(read_waivers(folder / "waivers.toml"), read_fragments(folder / "fragments"), datetime.now(UTC).date())
    yield Action(
        "kernel-config",
        Call("kernel.config:configure", {"today": _today(project)}),
        {"linux": kernel.source, "kernel": FromPath(folder, ("fragments/*", "patches/*", "*.toml", "*.txt", "*.sh"))},
        tools=KERNEL_TOOLS,
    )
    yield Action(
        "kernel",
        Script((folder / "build.sh").read_text(), "kernel.payload"),
        {
            "linux": kernel.source,
            "config": FromAction("kernel-config", "config"),
            "patches": FromAction("kernel-config", "patches"),
            "unpack": FromPath(folder / "unpack.sh"),
        },
        tools=KERNEL_TOOLS,
        seconds=1500,
    )


def _today(project: Project) -> str:
    """The only day that an action knows: that of the image's epoch."""
    return datetime.fromtimestamp(project.config.image.epoch, UTC).date().isoformat()


def _recipes(project: Project) -> Iterator[Action]:
    for name in sorted(_needed_recipes(project)):
        folder, recipe = project.recipes[name]
        yield Action(
            f"recipe-{name}",
            Script(read_text(folder / recipe.build)),
            _recipe_inputs(project, folder, recipe),
            env={"MIXOS_TARGET": project.arch.target, **recipe.env},
            links=recipe.links,
            tools=RECIPE_TOOLS,
            seconds=60,
        )
        if recipe.package:
            yield _package(project, recipe, f"recipe-{name}")


def _needed_recipes(project: Project) -> set[str]:
    """What is installed, and what is needed to build it."""
    wanted = [name for name in _installed(project) if name not in OWN_PACKAGES]
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            wanted += project.recipes.need(name, "the build")[1].build_depends
    return needed


def _installed(project: Project) -> list[str]:
    """All packages of the image: the ones asked for, their dependencies, and our own."""
    names = tuple(name for name in project.config.packages.install if name not in OWN_PACKAGES)
    place = nearest(positions(read_text(project.config_file)), ("packages", "install"))
    wanted_by = f"{project.config_file}:{place.line}:{place.column}: packages.install"
    found = closure(project.recipes, names, wanted_by)
    needed = REQUIRED | {SERVICE_NEEDS[name]: name for name in project.config.services.enable if name in SERVICE_NEEDS}
    missing = [f"'{name}' ({reason})" for name, reason in needed.items() if name not in found]
    if missing:
        raise ConfigError(f"{wanted_by}: an image needs {', '.join(missing)}", reason="package-missing")
    return [*OWN_PACKAGES, *found]


def _recipe_inputs(project: Project, folder: Path, recipe: Recipe) -> dict[str, Input]:
    inputs: dict[str, Input] = {}
    for source in recipe.sources:
        project.lock[source]  # an unlocked source is an error now, not in the middle of the build
        inputs[source] = FromSource(source)
    for dependency in recipe.build_depends:
        project.recipes.need(dependency, f"recipe '{recipe.name}'")
        if dependency in inputs:
            raise ConfigError(
                f"recipe '{recipe.name}': '{dependency}' is both a source and a build-depends", reason="recipe-input"
            )
        inputs[dependency] = FromAction(f"recipe-{dependency}")
    extra = [p.name for p in sorted(folder.iterdir()) if p.is_file() and p.name not in ("recipe.toml", recipe.build)]
    if extra:
        inputs["recipe"] = FromPath(folder, tuple(extra))
    return inputs


def _package(project: Project, recipe: Recipe, build: str) -> Action:
    params = recipe.model_dump(by_alias=True, include={"name", "version", "summary", "license", "homepage", "depends"})
    params["exclude"] = list(recipe.files.exclude)
    params["attributes"] = [item.model_dump(exclude_none=True) for item in recipe.attributes]
    return Action(f"package-{recipe.name}", Call("packages.mix.artifact:pack", params), {"build": FromAction(build)})


def _own_packages(project: Project, kernel: KernelInput) -> Iterator[Action]:
    config = project.config
    root = project.root
    yield Action(
        "base-files",
        Call(
            "rootfs.basefiles:build",
            {
                "version": config.image.version,
                "sequence": config.image.sequence,
                "floor": config.image.floor,
                "variant": config.image.variant,
                "build_id": seed(project)[:12],
                "profile": config.image.profile,
                "services": list(config.services.enable),
                "settings": project.settings.as_mapping(),  # a mistake in them is an error now
                "kernel": asdict(kernel.choice),
            },
        ),
        {
            "rootfs": FromPath(root / "rootfs", ("skeleton/**", "templates/**", "*.toml", "*.tsv")),
            "kernel-report": FromAction("kernel-config", "report.json"),
            **_keys(project),
        },
    )
    python = project.recipes.need("cpython", "the daemon")[1]
    yield Action(
        "daemon",
        Call("daemon.install:install"),
        {
            "common": FromPath(root / "common", ("**/*.py",)),
            "daemon": FromPath(root / "daemon", ("**/*.py", "**/*.toml", "bin/*", "dbus/*.conf")),
            "packages": FromPath(root / "packages", ("*.py", "mix/**/*.py")),
            "python": FromAction("recipe-cpython"),
            **{name: FromAction(f"recipe-{name}") for name in python.build_depends if name != "toolchain"},
        },
        links={project.arch.musl_loader: "/in/musl/usr/lib/libc.so"},
    )
    yield _own_package(project, "daemon", "The daemon of the booted system, and mixctl", ("cpython", "python-runtime"))
    yield from _helpers(project)


def _keys(project: Project) -> dict[str, Input]:
    """What the image trusts releases by, nothing when the project has no keys yet: such an image takes no updates; and
    what it adds to the databases of Secure Boot."""
    folder, additions = project.keys / "device", project.keys / "secureboot/additions"
    found: dict[str, Input] = {}
    if folder.is_dir():
        found["keys"] = FromPath(folder, ("root.json", "openpgp.asc", "trust.json"))
    if additions.is_dir():
        found["additions"] = FromPath(additions)
    return found


def _helpers(project: Project) -> Iterator[Action]:
    """What the daemon needs besides Python: in actions of its own, which a change of the daemon does not repeat."""
    native, profiles = project.root / "daemon/native", project.root / "rootfs/apparmor"
    yield Action(
        "native",
        Script(read_text(native / "build.sh")),
        {
            "native": FromPath(native, ("**/*.c", "**/*.h")),
            "toolchain": FromAction("recipe-toolchain"),
            "musl": FromAction("recipe-musl"),
        },
        env={"MIXOS_TARGET": project.arch.target},
        tools=("sh",),
        seconds=10,
    )
    yield _own_package(project, "native", "Helpers of the daemon: the parent of each service, the sandbox", ())
    yield Action(
        "apparmor",
        Script(read_text(profiles / "build.sh")),
        {
            "profiles": FromPath(profiles, ("*.profile", "features", "include/*")),
            "daemon": FromPath(project.root / "daemon", ("**/*.profile",)),
        },
        tools=("apparmor_parser", "sh"),
        seconds=10,
    )
    yield _own_package(project, "apparmor", "AppArmor policy of the system's services, compiled", ())


def _own_package(project: Project, action: str, summary: str, depends: Sequence[str]) -> Action:
    """The package `mixos-<action>`, made of the action's output."""
    recipe = Recipe.model_validate(
        {
            "name": f"mixos-{action}",
            "version": project.config.image.version,
            "summary": summary,
            "license": "Apache-2.0",
            "homepage": "https://mixos.org/",
            "depends": list(depends),
        }
    )
    return _package(project, recipe, action)


def _root(project: Project) -> Iterator[Action]:
    config = project.config
    names = _installed(project)
    packages: dict[str, Input] = {
        name: FromAction("base-files" if name == "base-files" else f"package-{name}") for name in names
    }
    installed = [project.recipes[name][1] for name in names if name not in OWN_PACKAGES]
    waivers = [waiver.model_dump() for recipe in installed for waiver in recipe.elf_waivers]
    elf = {**_elf(project), "waivers": waivers}
    yield Action(
        "rootfs",
        Call("rootfs.compose:compose", {"packages": names, "version": config.image.version, "elf": elf}),
        packages,
    )
    yield Action(
        "root-image",
        Call(
            "rootfs.pack:squash",
            {"filesystem": config.image.filesystem, "limit": config.image.max_root, "seed": seed(project)},
        ),
        {"root": FromAction("rootfs")},
        tools=("zstd",) if config.image.filesystem == "squashfs" else ("mkfs.erofs", "fsck.erofs"),
    )


def _elf(project: Project) -> dict[str, str]:
    """What programs of the image are compiled for."""
    return {"machine": project.arch.elf_machine, "interpreter": project.arch.musl_loader}


def seed(project: Project) -> str:
    """What every UUID, serial number, salt and hash seed of the image derives from: its name and version."""
    image = project.config.image
    return hashlib.sha256(f"mixos-seed-1:{image.name}:{image.version}".encode()).hexdigest()


def _disk(project: Project) -> Iterator[Action]:
    config = project.config
    mebi = 1 << 20
    sizes = config.partitions
    common = {
        "version": config.image.version,
        "seed": seed(project),
        "layout": {"esp": sizes.esp // mebi, "slot": sizes.root // mebi, "data": sizes.data // mebi},
        "root-file": f"root.{config.image.filesystem}",
        "arch": project.arch.name,
        "efi-arch": project.arch.efi_suffix,
    }
    root = FromAction("root-image")
    yield Action("verity", Call("image.assemble:verity", common), {"root": root})
    words = (*PROFILE_WORDS[config.image.profile], *config.kernel.cmdline)
    boot: dict[str, Input] = {
        "kernel": FromAction("kernel"),
        "cmdline": FromAction("kernel-config", "cmdline"),
        "systemd-stub-efi": FromSource("systemd-stub-efi"),
    }
    yield Action(
        "uki",
        Call(
            "image.assemble:uki",
            {**common, "cmdline": " ".join(words), "login-until": project.settings.login_until},
        ),
        {"verity": FromAction("verity"), **boot},
    )
    rescue: dict[str, Input] = {}
    if config.image.rescue != "none":
        rescue["rescue"] = FromAction("rescue")
        menu = {**common, "cmdline": " ".join([*words, f"mixos.rescue={config.image.rescue}"])}
        yield Action("initramfs", Call("rootfs.rescue:initramfs", {"elf": _elf(project)}), _initramfs(project))
        yield Action("rescue", Call("image.assemble:rescue", menu), {"initramfs": FromAction("initramfs"), **boot})
    yield Action(
        IMAGE_TARGET,
        Call("image.assemble:disk", common),
        {
            "root": root,
            "verity": FromAction("verity"),
            "uki": FromAction("uki"),
            **rescue,
            "systemd-boot-efi": FromSource("systemd-boot-efi"),
        },
    )


def _initramfs(project: Project) -> dict[str, Input]:
    folder = project.root / "rootfs"
    return {
        "root": FromAction("rootfs"),
        "rescue": FromPath(folder / "rescue"),
        "rescue.toml": FromPath(folder / "rescue.toml"),
    }

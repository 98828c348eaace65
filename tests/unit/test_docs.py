"""The documentation is true: examples go through the real parsers, links lead somewhere, nothing is left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from pydantic import BaseModel

from buildsys.cli.main import VERBS, cli
from buildsys.config.model import MixosToml
from buildsys.config.recipe import Recipe
from buildsys.lock import Source, load_lock
from buildsys.project import Project
from buildsys.run import run
from common import toml, tomlfile
from common.errors import MixosError
from common.settings.model import Network, Settings, SshKey, Update, from_mapping, parse_update
from common.settings.model import parse as parse_settings
from common.tomlfile import Strict, parse
from daemon.client.cli import verbs as mixctl_verbs
from daemon.core.profiles import ProfileFile
from daemon.linux.sandbox.policy import Overlay
from daemon.parts.firewall.model import Config as FirewallConfig
from daemon.parts.mdns.part import MdnsFile
from daemon.parts.metrics.config import Config as MetricsConfig
from daemon.parts.net.netfile import NetworkFile
from daemon.parts.proxy.part import ProxyFile
from daemon.parts.service.load import parse_unit
from daemon.parts.vpn.model import VpnFile
from kernel.waivers import read_waivers
from packages.mix import elf
from rootfs.basefiles import read_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# What people write on a device, by the name in the example's first line; any other name on these pages is a unit.
DEVICE_FILES: dict[str, type[Strict]] = {
    "firewall.toml": FirewallConfig,
    "mdns.toml": MdnsFile,
    "metrics.toml": MetricsConfig,
    "network.toml": NetworkFile,
    "overlay.toml": Overlay,
    "profile.toml": ProfileFile,
    "proxy.toml": ProxyFile,
    "vpn.toml": VpnFile,
}
UNIT_PAGES = ("services.md",)
REQUIRED_PAGES = {"README.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "SECURITY.md"}


@dataclass(frozen=True)
class Block:
    """A fenced block: page, line of its fence (from 1), language, text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def title(self) -> str:
        """The file that a first line `# name` says the block belongs to, or ''."""
        found = re.match(r"# (\S+)\n", self.text)
        return found[1] if found else ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path) -> Iterator[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = page.read_text(encoding="utf-8")
    for found in fence.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


ALL_BLOCKS = [block for page in PAGES for block in blocks(page)]
TOML = [pytest.param(block, id=block.where) for block in ALL_BLOCKS if block.language == "toml"]
SHELL = [pytest.param(block, id=block.where) for block in ALL_BLOCKS if block.language == "sh"]


# -- examples --------------------------------------------------------------------------------------------------------


def test_the_pages_that_a_project_has_are_there():
    assert set(NAMES) >= REQUIRED_PAGES
    assert (ROOT / "LICENSE").read_text().lstrip().startswith("Apache License")


def completed(text: str, base: dict[str, Any]) -> MixosToml:
    """An excerpt of mixos.toml over a whole one: tables that it leaves out, and their keys, come from `base`."""
    part = toml.loads(text)
    merged = {**base, **{name: {**base.get(name, {}), **table} for name, table in part.items()}}
    return MixosToml.model_validate(merged)


@pytest.mark.parametrize("block", TOML)
def test_toml_examples_go_through_the_real_parser(block: Block, tmp_path: Path):
    if block.title == "mixos.toml":
        whole = "[image]" in block.text and "[packages]" in block.text
        base = toml.loads(read("mixos.toml"))
        config = parse(block.text, block.page, MixosToml) if whole else completed(block.text, base)
        read_settings(config.settings)
    elif block.title == "recipe.toml":
        parse(block.text, block.page, Recipe)
    elif block.title == "mixos-preseed.toml":
        parse_settings(block.text.encode(), block.where, Settings())
    elif block.title == "update.toml":
        parse_update(block.text.encode(), block.where)
    elif block.title == "sources.lock":
        path = tmp_path / "sources.lock"
        path.write_text(block.text)
        assert load_lock(path).sources
    elif block.title == "waivers.toml":
        path = tmp_path / "waivers.toml"
        path.write_text(block.text)
        assert read_waivers(path)
    elif block.title in DEVICE_FILES:
        tomlfile.parse(block.text, block.page, DEVICE_FILES[block.title])
    elif block.page.name in UNIT_PAGES and block.title:
        parse_unit(block.text, Path(block.title))
    else:
        pytest.fail(f"{block.where}: a TOML example begins with the name of its file, not {block.title!r}")


def test_every_kind_of_file_has_an_example():
    titles = {block.title for block in ALL_BLOCKS if block.language == "toml" and block.page.name not in UNIT_PAGES}
    assert titles == {
        "mixos.toml",
        "recipe.toml",
        "mixos-preseed.toml",
        "sources.lock",
        "update.toml",
        "waivers.toml",
        *DEVICE_FILES,
    }


@pytest.mark.parametrize("block", SHELL)
def test_shell_examples_are_shell(block: Block, tmp_path: Path):
    script = tmp_path / "example.sh"
    script.write_text(block.text)
    assert run(["/bin/sh", "-n", script]).status == 0


def mixos_lines(block: Block) -> Iterator[list[str]]:
    """The words behind each `mixos` in a shell block, without comments."""
    for line in block.text.splitlines():
        for part in re.split(r"&&|\$\(|\)", line):
            words = shlex.split(part.replace('"', ""), comments=True)
            if words and words[0] in ("mixos", ".venv/bin/mixos"):
                yield words[1:]


@pytest.mark.parametrize("block", SHELL)
def test_mixos_commands_in_examples_exist(block: Block):
    """click parses every line, options and values included; nothing is invoked."""
    for words in mixos_lines(block):
        context = cli.make_context("mixos", list(words))
        command: click.Command = cli
        while isinstance(command, click.Group):
            # The verb itself is kept apart from the rest until click 9.
            rest = [*getattr(context, "_protected_args", []), *context.args]
            name, found, arguments = command.resolve_command(context, rest)
            assert found is not None
            command = found
            context = command.make_context(name, list(arguments), parent=context)


@pytest.mark.parametrize("block", SHELL)
def test_make_targets_in_examples_exist(block: Block):
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), flags=re.MULTILINE))
    for target in re.findall(r"^make ([a-z]+)", block.text, flags=re.MULTILINE):
        assert target in targets


# -- links -----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Heading anchors as hosting pages make them: lower case, punctuation dropped, blanks to dashes."""
    titles = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", NAMES)
def test_relative_links_lead_somewhere(name: str):
    page = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if target.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.is_relative_to(ROOT), target
        assert place.exists(), target
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), target


def test_every_page_of_docs_is_reachable_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[a-z-]+\.md)", read("README.md")))
    assert linked == {name for name in NAMES if name.startswith("docs/")}


# -- nothing is left out ---------------------------------------------------------------------------------------------


def rows(page: str) -> dict[str, list[str]]:
    """Table rows of a page by the text in backticks in their first cell."""
    found = {}
    for line in read(page).splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if len(cells) > 1 and re.fullmatch(r"`[^`]+`", cells[0]):
            found[cells[0].strip("`")] = cells
    return found


def nested(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := nested(inner))), None)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """(dotted key, required) of every value that a model has; tables themselves only when they are lists."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{field.alias or name}"
        inner = nested(field.annotation)
        if inner is None or field.annotation is not inner:
            yield key, field.is_required()
        if inner is not None:
            yield from keys(inner, f"{key}.")


SETTING_KEYS = {
    "settings.hostname",
    "settings.timezone",
    *(f"settings.network.{name}" for name in ("mode", "interface", "address", "gateway", "dns")),
    "settings.ssh.root-login",
    "settings.ssh.keys",
    *(f"settings.ssh.keys.{name}" for name in ("account", "key", "from", "expires", "options")),
    "settings.time.servers",
    *(f"settings.update.{name}" for name in ("channel", "fetch", "apply", "when", "metered", "max-bytes")),
}


def flattened(table: dict[str, Any], prefix: str) -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
            if isinstance(value, list) and value and isinstance(value[0], dict):
                yield from (f"{prefix}{name}.{inner}" for inner in value[0])


def test_the_list_of_settings_in_this_test_is_that_of_the_parser():
    full = Settings(
        network=Network("static", "eth0", "192.0.2.10/24", "192.0.2.1", ("192.0.2.1",)),
        keys=(SshKey("admin", "key", ("10.0.0.0/8",), "2027-01-01", ("no-pty",)),),
        update=Update("https://updates.example", "window", "window", ("02:00-05:00",), ("wwan0",), 1),
    )
    assert set(flattened(full.as_mapping(), "settings.")) == SETTING_KEYS


def test_every_key_of_mixos_toml_is_described_and_no_other():
    described = {key for key in rows("docs/configuration.md") if re.fullmatch(r"[a-z]+(\.[a-z-]+)+", key)}
    expected = {key for key, _ in keys(MixosToml) if key != "settings"}
    assert described == expected | SETTING_KEYS


def value_of(table: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        table = table[part]
    return table


@pytest.mark.parametrize("key", [key for key, _ in keys(MixosToml) if key != "settings"])
def test_defaults_of_mixos_toml_are_those_described(key: str):
    text = rows("docs/configuration.md")[key][2]
    minimal: dict[str, Any] = {"image": {"version": "0.1.0", "epoch": 1}, "packages": {"install": []}}
    if text == "required":
        assert key in ("image.version", "image.epoch", "packages.install")
        return
    table, _, name = key.partition(".")
    explicit = {**minimal, table: {**minimal.get(table, {}), name: toml.loads(f"x = {text.strip('`')}")["x"]}}
    assert MixosToml.model_validate(explicit) == MixosToml.model_validate(minimal)


@pytest.mark.parametrize("key", sorted(SETTING_KEYS))
def test_defaults_of_settings_are_those_described(key: str):
    text = rows("docs/configuration.md")[key][2]
    if not text.startswith("`") or ".keys." in key or key.endswith("servers"):
        return
    value: Any = toml.loads(f"x = {text.strip('`')}")["x"]
    for part in reversed(key.split(".")[1:]):
        value = {part: value}
    assert from_mapping(value, "docs", Settings()) == Settings()


@pytest.mark.parametrize(("page", "model"), [("docs/recipes.md", Recipe), ("docs/sources.md", Source)])
def test_every_key_of_recipes_and_locks_is_described(page: str, model: type[BaseModel]):
    table = rows(page)
    for key, required in keys(model):
        assert key in table
        assert (table[key][2] == "required") == required, key


def test_every_rule_for_elf_files_is_described():
    source = Path(elf.__file__).read_text()
    rules = set(re.findall(r'yield "([a-z]+)"', source)) | set(re.findall(r'append\(\("([a-z]+)"', source))
    assert len(rules) >= 9
    assert rules <= set(rows("docs/recipes.md"))


def section(page: str, title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |^## |\Z)", read(page), re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[2]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_of_mixos_is_described(verb: str):
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    text = section("docs/commands.md", f"mixos {verb}")
    shared = section("docs/commands.md", "mixos")
    parts = command.commands.values() if isinstance(command, click.Group) else [command]
    for part in parts:
        if part is not command:
            assert f"mixos {verb} {part.name}" in text
        common = "kernel_source" in {parameter.name for parameter in part.params}
        for option in (one for one in part.params if isinstance(one, click.Option)):
            described = text + shared if common else text
            assert f"`{option.opts[-1]}" in described or f"[{option.opts[-1]} " in described, option.opts


def test_every_command_of_mixctl_is_described():
    table = section("docs/commands.md", "mixctl")
    for name in mixctl_verbs():
        assert f"`mixctl {name}`" in table


def subclasses(kind: type[MixosError]) -> Iterator[type[MixosError]]:
    for one in kind.__subclasses__():
        yield one
        yield from subclasses(one)


def test_every_exit_code_is_described():
    page = read("docs/commands.md")
    for kind in [MixosError, *subclasses(MixosError)]:
        assert re.search(rf"^\| {kind.exit_code} \||\({kind.exit_code}: ", page, re.MULTILINE), kind.__name__
        if kind.__module__ == "common.errors" and MixosError in (kind, *kind.__bases__):
            assert f"| {kind.exit_code} | `{kind.__name__}` |" in page


def test_every_init_stage_and_fragment_is_described():
    boot, kernel = rows("docs/boot.md"), rows("docs/kernel.md")
    for stage in (ROOT / "rootfs/skeleton/usr/lib/mixos/init/stages").glob("*.sh"):
        assert stage.stem in boot
    for fragment in (ROOT / "kernel/fragments").glob("*.config"):
        assert fragment.stem in kernel


def test_the_image_that_pages_name_is_the_one_that_is_built():
    image = Project.at(ROOT).image_file.name
    for page in PAGES:
        for found in re.findall(r"mixos-[0-9][^\s`/]*\.img", page.read_text(encoding="utf-8")):
            assert found == image, page.name


def test_reasons_that_troubleshooting_names_exist():
    code = "\n".join(
        path.read_text()
        for folder in ("common", "buildsys", "kernel", "rootfs", "packages/mix", "image", "daemon")
        for path in (ROOT / folder).rglob("*.py")
    )
    for cell in re.findall(r"^\| ([^|]+)\|", read("docs/troubleshooting.md"), flags=re.MULTILINE):
        for reason in re.findall(r"`\[?([a-z]+(?:-[a-z]+)+)\]?`", cell):
            assert f'"{reason}"' in code or reason == "apt-get", reason


def test_pages_speak_of_no_path_of_one_machine():
    for page in PAGES:
        assert not re.search(r"/(?:work|root|home)/(?!\.)\w", page.read_text(encoding="utf-8")), page.name


# case: H18
def test_nothing_says_that_the_kernel_is_signed():
    """The threat model says that it is not."""
    said = re.findall(r"(not )?\bsign(?:s|ed)\b", (ROOT / "kernel/cmdline.txt").read_text())
    assert all(said)


# case: H19
def test_actions_of_public_ci_are_named_by_commit():
    """A tag can be moved by whoever owns it, and runs with what CI may do."""
    files = [path for path in (ROOT / ".github").rglob("*") if path.suffix in (".yml", ".yaml")]
    used = [word for path in files for word in re.findall(r"uses:\s*(\S+)", path.read_text())]
    assert used
    assert all(word.startswith("./") or re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", word) for word in used)

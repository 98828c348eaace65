"""Manifests: what is computed from them, a part that is only a folder, and units that wait for what confines them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import daemon.parts
from common.errors import MixosError, RefusedError
from daemon import reference
from daemon.client import cli as commands
from daemon.client.connection import call
from daemon.client.console import names
from daemon.core import manifest
from daemon.core.gates import Gates
from daemon.core.manifest import File, Manifest, ManifestError, Names, Verb
from daemon.core.part import Context
from daemon.core.parts import source
from daemon.parts.backup import contents
from tests.daemons import running

ORDER = "change backup config firewall proxy storage service net vpn mdns sandbox metrics"


def context(base: Path) -> Context:
    found = Context(*(base / name for name in ("run", "state", "etc", "lib", "log")))
    for folder in (found.run, found.state, found.etc):
        folder.mkdir(parents=True)
    return found


def test_parts_start_behind_what_they_come_after():
    order = [one.name for one in manifest.manifests() if one.part]
    assert order.index("backup") == 0
    for one in manifest.manifests():
        for before in one.after:
            assert order.index(before) < order.index(one.name)
    assert set(ORDER.split()) <= set(order)  # none is lost; a folder more is a part more


def test_whatever_a_manifest_names_is_there():
    for one in manifest.manifests():
        places = [
            one.part,
            one.claims,
            *one.functions.values(),
            *(file.check for file in one.files),
            *(file.fits for file in one.files),
        ]
        for place in filter(None, places):
            assert callable(one.find(place)), place
        for verb, entry in one.verbs.items():
            assert isinstance(one.find(f"{entry.module}:{verb}"), click.Command)
    methods = {method.name for method in reference.methods()}
    assert {file.apply for file in manifest.known_files() if file.apply} <= methods
    assert {where.method for where in manifest.names().values()} <= methods


def test_what_a_manifest_imports():
    """All of them are read for every command that is not found elsewhere: they must cost nothing."""
    for one in manifest.manifests():
        text = Path(sys.modules[f"daemon.parts.{one.name}.manifest"].__file__ or "").read_text()
        lines = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
        assert [line for line in lines if not line.startswith("from daemon.core.manifest import ")] == []


A = Manifest(
    "a", files=(File("x.toml"),), verbs={"go": Verb("m", "")}, names={"n": Names("a.b")}, functions={"f": "m:f"}
)


@pytest.mark.parametrize(
    "other",
    [
        Manifest("a"),
        Manifest("b", files=(File("x.toml"),)),
        Manifest("b", verbs={"go": Verb("m", "")}),
        Manifest("b", names={"n": Names("b.c")}),
        Manifest("b", functions={"f": "m:f"}),
        Manifest("b", after=("nowhere",)),
    ],
)
def test_two_parts_that_claim_one_thing_are_a_mistake(other: Manifest):
    manifest.check([A])
    with pytest.raises(ManifestError):
        manifest.check([A, other])


def test_parts_that_come_after_each_other_are_a_mistake():
    with pytest.raises(ManifestError, match="a, b"):
        manifest._ordered({"a": Manifest("a", after=("b",)), "b": Manifest("b", after=("a",)), "c": Manifest("c")})


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("firewall.toml", "firewall"), ("lists/bad", "firewall"), ("lists/", None), ("lists/a/b", None),
        ("units/a.toml", "service"), ("units/.a.toml", None), ("units/a.tom", None), ("units/.toml", None),
        ("units/a/b.toml", None), ("firewall.tom", None), ("", None), ("xlists/a", None),
    ],
)  # fmt: skip
def test_whose_file_it_is(path: str, owner: str | None):
    found = manifest.file_for(path)
    assert (found[0].name if found else None) == owner


# -- a part that is a folder, and nothing else ------------------------------------------------------------------------

SAMPLE = {
    "manifest.py": """
from daemon.core.manifest import File, Manifest, Names, Verb

MANIFEST = Manifest(
    name="kettle",
    part="part:Kettle",
    after=("config",),
    files=(File("kettle.toml", check="part:KettleFile", apply="kettle.apply"),),
    verbs={"kettle": Verb("verbs", "Boil water.")},
    names={"cup": Names("kettle.cups")},
    backup={"kettle": ("var/lib/mixos/kettle",)},
    passing=("var/lib/mixos/kettle/steam",),
    secret=("var/lib/mixos/kettle/recipe",),
)
""",
    "answers.py": """
from typing import Annotated

from typing_extensions import TypedDict

from daemon.core.answers import Celsius


class Boiling(TypedDict):
    degrees: Annotated[Celsius, "of the water"]
""",
    "part.py": """
from __future__ import annotations

from typing import TYPE_CHECKING

from common.tomlfile import Strict, load
from daemon.core.figures import Family
from daemon.core.method import ADMINS, Method

if TYPE_CHECKING:
    from daemon.parts.kettle.answers import Boiling


class KettleFile(Strict):
    degrees: int = 100


class Kettle:
    name = "kettle"

    def __init__(self, context):
        self.context = context
        self.degrees = 0

    def methods(self):
        return [
            Method("kettle.cups", "The cups.", self.cups),
            Method("kettle.apply", "Boil as kettle.toml says.", self.apply, ADMINS, changes=True),
        ]

    async def start(self):
        pass

    async def stop(self):
        pass

    def status(self):
        return {"degrees": self.degrees}

    def figures(self):
        yield Family("mixos_kettle_degrees", "gauge", "Of the water.", [({}, self.degrees)])

    async def cups(self, caller, params) -> list[str]:
        return ["blue", "red"]

    async def apply(self, caller, params) -> Boiling:
        self.degrees = load(self.context.etc / "kettle.toml", KettleFile).degrees
        return {"degrees": self.degrees}
""",
    "verbs.py": """
import click

from daemon.client.cli.common import ask, json_option, show
from daemon.client.console.names import names


@click.command()
@click.argument("cup", shell_complete=names("cup"))
@json_option
def kettle(cup: str, as_json: bool) -> None:
    '''Boil water. Example: mixctl kettle blue'''
    show({"cup": cup, "cups": ask("kettle.cups")}, as_json, lambda found: f"{cup}: {found}")
""",
}


@pytest.fixture
def kettle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The folder of a part, and an installation that has it."""
    folder = tmp_path / "parts" / "kettle"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    for name, text in SAMPLE.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(daemon.parts, "__path__", [*daemon.parts.__path__, str(tmp_path / "parts")])
    commands.verbs.cache_clear()
    yield
    commands.verbs.cache_clear()
    for name in [name for name in sys.modules if name.startswith("daemon.parts.kettle")]:
        del sys.modules[name]


@pytest.mark.usefixtures("kettle")
def test_a_folder_added_is_a_part_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = context(tmp_path / "device")
    wanted = [one for one in manifest.manifests() if one.name in ("config", "kettle")]
    with running(tmp_path / "d", more=[source(one, place) for one in wanted]) as device:

        def ask(method: str, params: Any = None, **options: Any) -> Any:
            return call(method, params or {}, device.path, **{**options, "patience": 5.0})

        monkeypatch.setattr("daemon.client.connection.call", ask)
        # API, its description, status
        assert ask("kettle.cups") == ["blue", "red"]
        assert "kettle.apply" in [method["name"] for method in ask("api.methods")]
        assert ask("api.schema", {"name": "kettle.apply"})["kettle.apply"]["answer"]["properties"] == {
            "degrees": {"type": "number", "unit": "degrees Celsius", "description": "of the water"}
        }
        # configuration: known, checked, put in force
        with pytest.raises(MixosError) as caught:
            ask("config.put", {"path": "kettle.toml", "text": "degrees = 'hot'\n"})
        assert caught.value.reason == "config-value"
        assert ask("config.put", {"path": "kettle.toml", "text": "degrees = 80\n"})["apply"] == ["kettle.apply"]
        assert ask("kettle.apply") == {"degrees": 80}
        assert [row["path"] for row in ask("config.list")] == ["kettle.toml"]
        assert device.daemon.parts.status()["kettle"]["degrees"] == 80
        assert [(one.name, one.rows) for one in device.daemon.context.figures.families()] == [
            ("mixos_kettle_degrees", [({}, 80)])
        ]
        # command line, completion, help
        done = CliRunner().invoke(commands.cli, ["kettle", "blue", "--json"])
        assert json.loads(done.output) == {"cup": "blue", "cups": ["blue", "red"]}
        assert "Boil water." in CliRunner().invoke(commands.cli, ["--help"]).output
        assert names.complete_names("cup") == ["blue", "red"]
    # reference, D-Bus, backups
    found = reference.methods()
    assert "## kettle" in reference.page(found)
    assert "| `degrees` | number | of the water, in degrees Celsius |" in reference.page(found)
    assert "org.mixos.Kettle1" in reference.xml(found)
    assert contents._sections()["kettle"] == ("var/lib/mixos/kettle",)


# -- gates ------------------------------------------------------------------------------------------------------------


def outcome(gates: Gates, place: Context, unit: str) -> str:
    try:
        asyncio.run(gates.pass_through(place, unit))
    except RefusedError as error:
        return error.reason if error.message.startswith(unit) else f"it does not name {unit}"
    return "may start"


RULES = '[units.web]\noutgoing = ["https"]\n'


@pytest.mark.parametrize(
    ("firewall", "quotas", "unit", "expected"),
    [
        (None, None, "web", "may start"),
        (RULES, None, "web", "gate-missing"),
        (RULES, None, "other", "may start"),
        ("[units", None, "other", "gate-missing"),  # cannot be told
        ("\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), None, "other", "gate-missing"),
        (None, '{"web": {"project": 1000, "limit": 4096}}', "web", "gate-missing"),
        (None, '{"web": {"project": 1000, "limit": null}}', "web", "may start"),
        (None, '{"web": {"project": 1000, "limit": 4096}}', "other", "may start"),
        (None, "{", "other", "gate-missing"),
    ],
)
def test_a_unit_waits_for_the_part_that_confines_it(
    tmp_path: Path, firewall: str | None, quotas: str | None, unit: str, expected: str
):
    """Neither the firewall nor storage is up: what they have to enforce is told from their files."""
    place = context(tmp_path)
    if firewall is not None:
        (place.etc / "firewall.toml").write_text(firewall)
    if quotas is not None:
        (place.state / "storage").mkdir()
        (place.state / "storage/quotas.json").write_text(quotas)
    assert outcome(place.gates, place, unit) == expected


def test_a_gate_that_is_there_decides(tmp_path: Path):
    place = context(tmp_path)
    (place.etc / "firewall.toml").write_text(RULES)
    passed: list[str] = []

    async def gate(unit: str) -> None:
        passed.append(unit)
        if unit == "bad":
            raise RefusedError("bad: no", reason="firewall-no-cgroup")

    place.gates.open("firewall", gate)
    assert outcome(place.gates, place, "web") == "may start"
    assert outcome(place.gates, place, "bad") == "firewall-no-cgroup"
    assert passed == ["web", "bad"]
    place.gates.close("firewall")
    assert outcome(place.gates, place, "web") == "gate-missing"


def test_what_cannot_be_loaded_cannot_say_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = context(tmp_path)
    monkeypatch.setitem(sys.modules, "daemon.parts.firewall.claims", None)  # an import of it fails
    assert outcome(place.gates, place, "any") == "gate-missing"

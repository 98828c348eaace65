"""Methods as D-Bus interfaces: signatures, XML, values; and the generated reference is that of the code."""

from __future__ import annotations

import enum
import inspect
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NotRequired
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, SecretStr
from typing_extensions import TypedDict

from common.errors import RpcError
from common.tomlfile import Strict
from daemon import reference
from daemon.core.answers import Bytes, JsonObject, answer, answer_schema, schema
from daemon.core.method import Caller, Method, Nothing
from daemon.core.params import validate
from daemon.core.schema import rows
from daemon.doors import interface
from daemon.doors.values import pack, signature
from tests.hostpackages import ROOT


class Kind(enum.StrEnum):
    A = "a"
    B = "b"


class Inner(Strict):
    x: int = 1


class Everything(Strict):
    text: str
    number: Annotated[int, Field(ge=1)]
    fraction: float
    flag: bool
    words: list[str]
    numbers: tuple[int, ...]
    table: dict[str, Any]
    inner: Inner
    inners: list[Inner]
    kind: Kind
    level: Literal["low", "high"]
    maybe: str | None
    either: int | str
    anything: Any
    path: Path
    secret_key: SecretStr
    optional: int = 1


async def answers(caller: Caller, params: Everything) -> list[dict[str, Any]]:
    return []


def test_signatures_of_parameters():
    member = interface.Member(Method("part.rule.add-all", "x", answers, params=Everything))
    assert member.name == "RuleAddAll"
    assert {one.name: one.type for one in member.arguments} == {
        "text": "s",
        "number": "x",
        "fraction": "d",
        "flag": "b",
        "words": "as",
        "numbers": "ax",
        "table": "a{sv}",
        "inner": "a{sv}",
        "inners": "aa{sv}",
        "kind": "s",
        "level": "s",
        "maybe": "s",
        "either": "v",
        "anything": "v",
        "path": "s",
        "secret-key": "s",
    }
    assert (member.options, member.result) == (True, "aa{sv}")
    assert member.signature == "".join(one.type for one in member.arguments) + "a{sv}"


def test_options_are_only_there_when_something_may_be_given():
    async def nothing(caller: Caller, params: Nothing) -> None: ...

    assert interface.Member(Method("a.b", "x", nothing)).signature == ""
    assert interface.Member(Method("a.b", "x", nothing)).result == ""
    assert interface.Member(Method("a.b", "x", nothing, changes=True)).signature == "a{sv}"


def test_names_are_what_dbus_allows():
    assert interface.interface("vpn-peer") == "org.mixos.VpnPeer1"
    assert interface.path("vpn-peer") == "/org/mixos/vpn_peer"
    assert interface.path("manager") == "/org/mixos"


def test_description_is_xml_and_lists_children():
    parts = interface.by_part([Method("part.x", 'say "<this>" & that', answers, params=Everything)])
    text = interface.describe(parts, "/org/mixos/part")
    assert text is not None
    (found,) = (one for one in ElementTree.fromstring(text).iter("annotation") if "DocString" in one.get("name", ""))
    assert found.get("value") == 'say "<this>" & that'
    for place, child in (("/", "org"), ("/org", "mixos"), ("/org/mixos", "part")):
        text = interface.describe(parts, place)
        assert text is not None
        assert [one.get("name") for one in ElementTree.fromstring(text).findall("node")] == [child]
    assert interface.describe(parts, "/org/mixos/nothing") is None
    assert interface.describe(parts, "/org/mix") is None


class Wrapped(NamedTuple):
    code: str
    value: Any


def test_values():
    value = {"a": None, "b": [1, None], "c": {"d": [{"e": 1.5}]}, "f": True, "g": [], "h": 1 << 70, "\0": "\ud800"}
    assert pack(Wrapped, {"type": "object"}, value) == {
        "b": ("av", [("x", 1), ("av", [])]),
        "c": ("a{sv}", {"d": ("aa{sv}", [{"e": ("d", 1.5)}])}),
        "f": ("b", True),
        "g": ("av", []),
        "h": ("d", float(1 << 70)),
        "\ufffd": ("s", "?"),
    }


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (dict[str, Any], None),
        (dict[str, Any], [1]),
        (list[str], 5),
        (int, "x"),
        (int, None),
        (object, {1, 2}),
        (object, object()),
    ],
)
def test_values_that_do_not_fit(kind: Any, value: Any):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        pack(Wrapped, schema(kind), value)


def test_deep_values_are_refused():
    value: Any = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(ValueError):
        pack(Wrapped, {}, value)


Part = TypedDict(  # noqa: UP013  # as a class of this module its annotations were texts, which hide NotRequired
    "Part",
    {
        "name": Annotated[str, "what it is called"],
        "size": Annotated[Bytes | None, "how large it is"],
        "hint": NotRequired[str],
    },
)


class Whole(TypedDict):
    """Something."""

    parts: list[Part]
    counts: dict[str, int]
    by_name: dict[str, Part]
    level: Literal["low", "high"]
    odd: int | str
    first: Part | None
    free: JsonObject


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (type(None), "v"),
        (str, "s"),
        (Kind, "s"),
        (Literal[1, 2], "x"),
        (Literal["a", 1], "v"),
        (list[str], "as"),
        (tuple[int, ...], "ax"),
        (list[list[float]], "aad"),
        (list[int | None], "av"),
        (list[Any], "av"),
        (dict[str, int], "a{sx}"),
        (dict[str, list[Part]], "a{saa{sv}}"),
        (JsonObject, "a{sv}"),
        (Whole, "a{sv}"),
        (list[Part], "aa{sv}"),
        (int | str, "v"),
        (Annotated[Bytes, "text"], "x"),
        (Bytes | None, "v"),
        (object, "v"),
    ],
)
def test_signatures_of_answers(kind: Any, code: str):
    assert signature(schema(kind)) == code


def test_members_of_records_have_their_own_signatures():
    """Also where there is nothing to guess from: an empty list, a whole number that is a fraction."""
    part = {"name": "a", "size": None, "hint": "h"}
    packed = {"name": ("s", "a"), "hint": ("s", "h")}
    value = {
        "parts": [],
        "counts": {},
        "by_name": {"a": part},
        "level": "low",
        "odd": 1,
        "first": None,
        "free": {"x": []},
    }
    assert pack(Wrapped, schema(Whole), value) == {
        "parts": ("aa{sv}", []),
        "counts": ("a{sx}", {}),
        "by_name": ("a{sa{sv}}", {"a": packed}),
        "level": ("s", "low"),
        "odd": ("x", 1),
        "free": ("a{sv}", {"x": ("av", [])}),
    }
    assert pack(Wrapped, schema(Whole), {"odd": "a", "first": part}) == {"odd": ("s", "a"), "first": ("a{sv}", packed)}
    assert pack(Wrapped, schema(dict[str, float]), {"a": 1}) == {"a": 1.0}
    assert pack(Wrapped, schema(list[int | None]), [1, None]) == [("x", 1), ("av", [])]


def test_schemas_say_what_members_mean():
    found = schema(list[Part])
    assert found == {
        "type": "array",
        "items": {
            "type": "object",
            "title": "Part",
            "properties": {
                "name": {"type": "string", "description": "what it is called"},
                "size": {
                    "anyOf": [{"type": "integer", "unit": "bytes"}, {"type": "null"}],
                    "description": "how large it is",
                },
                "hint": {"type": "string"},
            },
            "required": ["name", "size"],
            "additionalProperties": False,
        },
    }
    assert [(row.path, row.meaning, row.required) for row in rows(found)] == [
        ("[].name", "what it is called", True),
        ("[].size", "how large it is, in bytes", True),
        ("[].hint", "", False),
    ]
    with pytest.raises(TypeError):
        schema(set[int])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(JSON)
def test_every_value_of_json_can_be_sent(value: Any):
    """As the library itself sees it: what it marshals, the bus accepts."""
    from dbus_fast.message import Message
    from dbus_fast.signature import Variant

    message = Message("a.b", "/a", "a.b", "C", signature="v", body=[pack(Variant, {}, value)])
    assert message._marshall(False)


def test_the_reference_is_that_of_the_code():
    found = reference.methods()
    hint = "run: python -m daemon.reference"
    assert (ROOT / reference.PAGE).read_text(encoding="utf-8") == reference.page(found), hint
    assert (ROOT / reference.XML).read_text(encoding="utf-8") == reference.xml(found), hint
    assert (ROOT / reference.ANSWERS).read_text(encoding="utf-8") == reference.answers(found), hint


def test_every_method_is_documented_and_well_named():
    for method in reference.methods():
        assert method.summary.endswith(".")
        assert "\n" not in method.summary
        json.dumps(method.params.model_json_schema(by_alias=True))


def test_every_method_says_what_it_takes_and_what_it_answers():
    """mypy compares a handler with the parameters that its method names, but not with those that it does not name."""
    for method in reference.methods():
        _, params = list(inspect.signature(method.handler, eval_str=False).parameters.values())
        known = vars(inspect.getmodule(method.handler))
        taken = eval(params.annotation, known)
        assert issubclass(method.params, getattr(taken, "__bound__", taken)), method.name
        assert answer(method) is not object, method.name
        for name, field in method.params.model_fields.items():
            assert field.description, (method.name, name)
        said = answer_schema(method)
        for one in (said, said.get("items", {})):  # a member may be free-form, and says so; an answer may not
            assert one.get("additionalProperties") is not True, method.name
        for row in rows(said):
            assert row.meaning, (method.name, row.path)


@pytest.mark.parametrize(
    ("name", "params", "places"),
    [
        ("proxy.set", {"http": "x", "https": "y"}, ["http", "https"]),
        ("firewall.block", {"content": -1}, ["content"]),
        ("firewall.allow", {"service": "ssh", "from": ["300.1.1.1", "y"]}, ["from.0", "from.1"]),
    ],
)
def test_a_mistake_is_told_once_at_the_callers_own_name(name: str, params: dict[str, object], places: list[str]):
    """Not once for each kind of a union, with pydantic's names for them."""
    method = next(one for one in reference.methods() if one.name == name)
    with pytest.raises(RpcError) as caught:
        validate(method, params)
    assert [line.partition(":")[0] for line in caught.value.message.splitlines()] == places

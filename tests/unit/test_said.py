"""What a program with fewer rights says: taken when it is what it must be, and never for more."""

import json

import pytest

from common import said
from common.errors import DiskError, MixosError

ERROR = DiskError("it fails", reason="disk", hint="turn it on", retryable=True).as_json()


def test_an_error_comes_back():
    with pytest.raises(MixosError) as caught:
        said.read(json.dumps({"error": ERROR}).encode())
    assert caught.value.as_json() == ERROR


def test_an_object_comes_back():
    assert said.read(b'{"step": "root"}') == {"step": "root"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"5",
        b"[]",
        b'"error"',
        b"[" * 100_000,
        b"9" * 5000,
        b"\xff",
        b'{"a":[' + b"{}," * 70_000 + b"{}]}",
        b'{"error": 5}',
        b'{"error": {"error": "x"}}',
    ],
)
def test_what_is_none_is_refused(line):
    with pytest.raises(ValueError, match=r"."):
        said.read(line)


@pytest.mark.parametrize("status", ["1e999", "-1", "0", "256", "true", '"1"', "9" * 400])
def test_an_exit_code_is_one(status):
    line = json.dumps({"error": {**ERROR, "exit_code": 0}}).replace('"exit_code": 0', f'"exit_code": {status}')
    with pytest.raises(MixosError) as caught:
        said.read(line.encode())
    assert caught.value.exit_code == 1


def test_words_are_harmless_on_a_terminal():
    with pytest.raises(MixosError) as caught:
        said.read(json.dumps({"error": {**ERROR, "error": "a\x1b[2J\nb" * 1000}}).encode())
    assert "\x1b" not in caught.value.message
    assert len(caught.value.message) <= 1000

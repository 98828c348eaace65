"""The filter between outside text and a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.safe import one_line, printable, printable_json

ANY = st.text(st.characters(codec=None), max_size=60)  # surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\twith tab\nand line", "plain text\twith tab\nand line"),
        ("Grüße, 東京 👍🏽", "Grüße, 東京 👍🏽"),
        ("\x1b]0;owned\x07", "\\x1b]0;owned\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("safe\rrm -rf", "safe\\x0drm -rf"),
        ("a\x7fb\x00", "a\\x7fb\\x00"),
        ("user\u202etxt.exe", "user\\u202etxt.exe"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_a_terminal_obeys_is_shown_instead(text, shown):
    assert printable(text) == shown


@given(ANY)
def test_nothing_dangerous_is_left(text):
    shown = printable(text)
    shown.encode()
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert not [char for char in shown if unicodedata.bidirectional(char) in ("LRO", "RLO", "LRE", "RLE", "PDF", "RLI")]
    assert printable(shown) == shown


@given(ANY, st.integers(4, 30))
def test_one_line_is_one_short_line(text, limit):
    line = one_line(text, limit)
    assert len(line) <= limit
    assert len(line.splitlines()) <= 1


@given(st.dictionaries(ANY, ANY, max_size=4))
def test_json_stays_json_with_the_same_content(document):
    encoded = json.dumps(document, ensure_ascii=False)
    safe = printable_json(encoded)
    assert printable(safe) == safe
    # Two surrogates in a row are one character to a decoder, whoever escaped them.
    assert json.loads(safe) == json.loads(json.dumps(document))

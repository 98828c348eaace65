"""Each reader of outside bytes against mutations of what is valid; `make test-long` gives it many more of them."""

from __future__ import annotations

import contextlib

import pytest

from tests.fuzzing import fuzz
from tests.readers import DEEP, FOUND, READERS

TIMES = 2000


@pytest.mark.parametrize("name", READERS)
def test_no_mutation_is_a_surprise(name: str) -> None:
    reader = READERS[name]
    result = fuzz(reader, max(20, TIMES // reader.cost))
    assert not result.findings, result.findings[0]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once(name: str, data: bytes) -> None:
    reader = READERS[name]
    with contextlib.suppress(*reader.errors):
        reader.read(data)


@pytest.mark.parametrize("name", READERS)
def test_nothing_nests_too_deeply(name: str) -> None:
    reader = READERS[name]
    for data in DEEP:
        with contextlib.suppress(*reader.errors):
            reader.read(data)

"""Versions, the fragment parser, merging, and the merged request of this project."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kernel
from common.errors import ConfigError
from kernel.kconfig import (
    Request,
    defined_symbols,
    did_you_mean,
    merge,
    normal,
    parse_final,
    parse_fragment,
    read_fragments,
    read_symbols,
    render,
)
from kernel.version import Range, Version

KERNEL = Path(kernel.__file__).parent
GOLDEN = Path(__file__).with_name("test_kernel_request.golden")

names = st.from_regex(r"[A-Z0-9_]{1,20}", fullmatch=True)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=12)
scalars = st.one_of(
    st.sampled_from(["y", "n"]),
    st.integers(-(10**9), 10**9).map(str),
    st.integers(0, 2**64).map(hex),
    texts.map('"{}"'.format),
)


@given(st.dictionaries(names, scalars))
def test_what_is_rendered_reads_back(wanted: dict[str, str]):
    read = merge([parse_fragment(render(wanted), "f")])
    assert {name: request.value for name, request in read.items()} == wanted
    assert parse_final(render(wanted)) == wanted


@given(st.text())
def test_any_text_is_read_or_refused_with_its_place(text: str):
    refused: ConfigError | None = None
    try:
        parse_fragment(text, "f.config")
    except ConfigError as error:
        refused = error
    assert refused is None or refused.reason in {"kconfig-syntax", "kconfig-module"}
    assert refused is None or refused.message.startswith("f.config:")


@given(st.integers(0, 2**64))
def test_a_number_has_one_normal_form(number: int):
    assert normal(hex(number)) == normal(hex(number).upper().replace("X", "x")) == normal(f"0{number}") == str(number)


@given(st.lists(st.tuples(names, scalars), max_size=8))
def test_merging_a_fragment_with_itself_changes_nothing(pairs: list[tuple[str, str]]):
    fragment = [Request(name, value, "f", 1) for name, value in dict(pairs).items()]
    assert merge([fragment, fragment]) == merge([fragment])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("CONFIG_A=m", "kconfig-module"),
        ("CONFIG_A=", "kconfig-syntax"),
        ("CONFIG_A=Y", "kconfig-syntax"),
        ("CONFIG_A=y # why", "kconfig-syntax"),
        ('CONFIG_A="open', "kconfig-syntax"),
        ("CONFIG-A=y", "kconfig-syntax"),
        ("A=y", "kconfig-syntax"),
        (" CONFIG_A=y", "kconfig-syntax"),
        ("# CONFIG_A is not se", "kconfig-syntax"),
        ("# CONFIG_A is off", "kconfig-syntax"),
    ],
)
def test_lines_that_are_refused(line: str, reason: str):
    with pytest.raises(ConfigError) as caught:
        parse_fragment(f"# fine\n{line}\n", "x.config")
    assert caught.value.reason == reason
    assert caught.value.message.startswith("x.config:2:")


def test_a_contradiction_names_both_lines():
    with pytest.raises(ConfigError) as caught:
        merge([parse_fragment("CONFIG_A=y\n", "one"), parse_fragment("\n# CONFIG_A is not set\n", "two")])
    assert caught.value.reason == "kconfig-conflict"
    assert "one:1" in caught.value.message
    assert "two:2" in caught.value.message


def test_a_folder_without_fragments_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read_fragments(tmp_path)
    assert caught.value.reason == "kconfig-no-fragments"


def test_symbols_come_from_the_folders_that_x86_reads(tmp_path: Path):
    for place, text in {
        "Kconfig": "config TOP\n\tbool\n",
        "drivers/net/Kconfig.debug": "menuconfig DEEP\n  config\tINDENTED\nif X\nendif\n# config COMMENT\n",
        "arch/x86/Kconfig": "config X86\n",
        "arch/arm/Kconfig": "config ARM\n",
        "scripts/gcc-plugins/Kconfig": "config PLUGIN\n",
        "scripts/kconfig/tests/Kconfig": "config TEST_CASE\n",
        "tools/Kconfig": "config TOOL\n",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    assert defined_symbols(tmp_path) == {"TOP", "DEEP", "INDENTED", "X86", "PLUGIN"}


def test_did_you_mean():
    known = read_symbols(KERNEL / "symbols-6.6-x86.txt")
    assert "SQUASHFS_ZSTD" in (did_you_mean("SQUASFS_ZSTD", known) or "")
    assert did_you_mean("QQQQQQQQQ", known) is None


def test_the_merged_request_is_the_golden_one():
    """A changed kernel request rebuilds the kernel and must be seen in review.

    After a change that is meant: python3 -c "from pathlib import Path; from kernel.kconfig import *;
    print(render({k: v.value for k, v in read_fragments(Path('kernel/fragments')).items()}), end='')"
    > tests/unit/test_kernel_request.golden
    """
    requests = read_fragments(KERNEL / "fragments")
    assert render({name: request.value for name, request in requests.items()}) == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "6", "6.x", "6.6.8.1", "v6.6", "6.6-rc1", "-6.6"])
def test_what_is_not_a_version(text: str):
    with pytest.raises(ConfigError) as caught:
        Version.parse(text)
    assert caught.value.reason == "kernel-version"


@given(st.tuples(*[st.integers(0, 999)] * 3), st.tuples(*[st.integers(0, 999)] * 3))
def test_versions_sort_by_number(one: tuple[int, int, int], two: tuple[int, int, int]):
    first, second = Version(*one), Version(*two)
    assert Version.parse(str(first)) == first
    assert (first < second) == (one < two)
    assert (first in Range.parse(f">={second}")) == (one >= two)
    assert (first in Range.parse(f"<{second}")) == (one < two)
    assert first in Range.parse("any")
    assert first in Range.parse(f"=={first}, <= {first}")


@pytest.mark.parametrize("text", ["", "6.6", ">=", "~6.6", ">=6.6,", "any,<6"])
def test_what_is_not_a_range(text: str):
    with pytest.raises(ConfigError) as caught:
        Range.parse(text)
    assert caught.value.reason in {"kernel-version-range", "kernel-version"}

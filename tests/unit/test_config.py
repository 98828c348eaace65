"""What users write is read strictly, and every mistake is located."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildsys.config.model import MixosToml, parse_size
from buildsys.config.recipe import closure, load_recipes
from buildsys.lock import load_lock
from common import toml
from common.errors import ConfigError, SettingsError
from common.positions import Position, positions
from common.settings import model as settings
from common.tomlfile import load, parse

GOOD = """\
[image]
version = "0.1.0"
epoch = 1703030400

[packages]
install = [
  "busybox", # a comment with ] in it
  "openssh",
]
"""
WHERE = Path("mixos.toml")


def failing(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(text, WHERE, MixosToml)
    return caught.value


DEEP = "a." * 5000 + "a"
SHAPES = {
    "key": f"{DEEP} = 1",
    "table": f"[{DEEP}]",
    "quoted": '"a" . ' * 5000 + "a = 1",
    "inside": f"b = {{ {DEEP} = 1 }}",
    "value": "image." + "a." * 60 + "b = " + ("{ " + "a." * 90 + "a = ") * 50 + "1" + " }" * 50,
    "text": "hostname." + "a." * 60 + "b = " + ("{ " + "a." * 90 + "a = ") * 50 + "1" + " }" * 50,
    "number": "a = " + "9" * 60_000,
    "array": "a = " + "[" * 9000,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_no_text_is_too_deep_or_too_large_to_be_told(shape: str):
    """tomllib takes time by the square of a key's parts, and Python refuses to print what nests too deeply."""
    assert failing(SHAPES[shape]).reason.startswith("config-")
    with pytest.raises(SettingsError) as caught:
        settings.parse(SHAPES[shape].encode(), "preseed", settings.Settings())
    assert caught.value.reason.startswith("settings-")


def test_dots_in_values_are_no_key():
    addresses = ", ".join(f"'10.0.{n}.0/24'" for n in range(200))
    name = ".".join("0123456789abcdef" * 2) + ".ip6.arpa"
    assert toml.loads(f"a = [{addresses}, '{name}']")["a"][-1] == name


def test_a_good_file_is_read():
    config = parse(GOOD, WHERE, MixosToml)
    assert config.packages.install == ("busybox", "openssh")
    assert config.kernel.source == "auto"


def test_an_unknown_key_is_located_and_a_near_name_suggested():
    error = failing(GOOD + '[kernel]\nsorce = "auto"\n')
    assert error.reason == "config-unknown-key"
    assert error.message.startswith("mixos.toml:11:1: ")
    assert "'source'" in error.message


def test_a_misspelt_required_key_is_called_misspelt():
    assert failing(GOOD.replace("version", "versoin")).reason == "config-unknown-key"


def test_a_missing_key_is_located_at_its_table():
    error = failing("[image]\nepoch = 1\n[packages]\ninstall = []\n")
    assert error.reason == "config-missing-key"
    assert error.message.startswith("mixos.toml:1:1: ")


def test_a_wrong_value_shows_value_and_place():
    error = failing(GOOD.replace("1703030400", '"soon"'))
    assert error.reason == "config-value"
    assert error.message.startswith("mixos.toml:3:1: ")
    assert "'soon'" in error.message


@pytest.mark.parametrize("epoch", ["0", "-1", "4294967296", "99999999999999999999"])
def test_an_epoch_that_no_calendar_has(epoch: str):
    assert failing(GOOD.replace("1703030400", epoch)).reason == "config-value"


@pytest.mark.parametrize("text", ["a = ", "[image", "\x00", "a = 1\na = 2", "x = " + "[" * 5000])
def test_text_that_is_not_toml_is_a_config_error(text: str):
    assert failing(text).reason == "config-syntax"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("[a.b]\n[a.b]\n", "mixos.toml:2:5: not valid TOML: Cannot declare a.b twice"),
        ("[a.\"x y\"]\n[a.'x y']", 'mixos.toml:2:9: not valid TOML: Cannot declare a."x y" twice'),
        ("a = {b = 1}\na.c = 2\n", "mixos.toml:2:8: not valid TOML: Cannot mutate immutable namespace a"),
    ],
)
def test_a_table_that_is_there_twice_is_named_as_in_the_file(text: str, start: str):
    assert failing(text).message == start


def test_a_file_that_is_not_utf8(tmp_path: Path):
    path = tmp_path / "mixos.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as caught:
        load(path, MixosToml)
    assert caught.value.reason == "config-encoding"


# case: B7
def test_a_file_that_was_written_on_windows(tmp_path: Path):
    path = tmp_path / "mixos.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(path, MixosToml) == parse("\ufeff" + GOOD, path, MixosToml) == parse(GOOD, path, MixosToml)
    path.write_bytes(GOOD.encode("utf-16"))
    with pytest.raises(ConfigError) as caught:
        load(path, MixosToml)
    assert caught.value.reason == "config-encoding"
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"0.1.0"', '"1"', "a version is expected, such as 1.2.3"),
        ('"0.1.0"', '"0.1.0"\nname = "My Image"', "a letter first"),
        ("[packages]", '[kernel]\ncmdline = ["a b"]\n[packages]', "without blanks and quotes"),
    ],
)
def test_what_may_stand_somewhere_is_told_in_words(old: str, new: str, expected: str):
    assert old in GOOD
    assert expected in failing(GOOD.replace(old, new)).message


@pytest.mark.parametrize(("text", "size"), [("1M", 1 << 20), ("3G", 3 << 30), (4096, 4096), ("12", 12)])
def test_sizes(text: object, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1T", "1.5M", None, True, "9" * 40, -1])
def test_sizes_that_are_none(text: object):
    with pytest.raises(ValueError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a = 1\nb" + ".b" * 64 + " = 1\n", ":2, column 1"),
        ("b" + ' . "b"' * 30_000 + " = 1\n", ""),  # would take tens of seconds
        ("[b" + ".b" * 20_000 + "]\n", ""),
        ("a = " + "9" * 5000 + "\n", ""),
        ("a = " + "[" * 70 + "]" * 70 + "\n", ""),
        ("a = " + "[" * 5000, ""),
        ("a = " + "{b = " * 300, ""),
    ],
)
def test_what_the_library_does_not_bound(text: str, line: str):
    with pytest.raises(toml.TOMLDecodeError) as caught:
        toml.loads(text)
    assert line.replace(":", "line ") in str(caught.value)


def test_what_only_looks_like_a_long_key():
    dots = "a." * 100
    text = f'# {dots}\na = "{dots}"\nb = """\n{dots}"""\nc = \'{dots}\'\n"{dots}" = 1\n' + "d" + ".d" * 62 + " = 1\n"
    assert set(toml.loads(text)) == {"a", "b", "c", "d", dots}
    for quote in ('"', "'"):  # a text may end in quotes of its own
        three = 3 * quote
        assert toml.loads(f"a = [{three}x{quote}{three}, {three}{dots}{three}]") == {"a": [f"x{quote}", dots]}


def test_positions_follow_tables_and_arrays():
    text = '[a]\nb.c = 1\n[[list]]\nx = """\n[no]\n"""\n[[list]]\n  "y z" = {k = [1,\n2]}\n[list.sub]\nq=1\n'
    found = positions(text)
    assert found["a", "b", "c"] == Position(2, 1)
    assert found["list", 1, "y z"] == Position(8, 3)
    assert found["list", 1, "sub", "q"] == Position(11, 1)
    assert ("no",) not in found


@given(st.text(alphabet="[]{}=\"'#.ab1 \n\\,", max_size=60))
def test_positions_end_on_everything_that_is_toml(text: str):
    try:
        data = toml.loads(text)
    except toml.TOMLDecodeError:
        return
    found = positions(text)
    assert all((name,) in found for name in data)


def test_the_shipped_files_are_valid():
    root = Path(__file__).parents[2]
    lock = load_lock(root / "sources.lock")
    recipes = load_recipes(root / "packages" / "recipes")
    config = load(root / "mixos.toml", MixosToml)
    assert all(source in lock.sources for _, recipe in recipes.values() for source in recipe.sources)
    assert set(config.packages.install) <= set(closure(recipes, config.packages.install, "test"))


def recipe(folder: Path, name: str, depends: list[str], declared: str | None = None) -> None:
    (folder / name).mkdir()
    (folder / name / "build.sh").write_text("true\n")
    (folder / name / "recipe.toml").write_text(
        f'name = "{declared or name}"\nversion = "1"\nsummary = "x"\nlicense = "MIT"\nhomepage = "https://example.org"\n'
        f"depends = {depends!r}\n"
    )


def test_dependencies_come_first_and_once(tmp_path: Path):
    recipe(tmp_path, "a", ["b", "c"])
    recipe(tmp_path, "b", ["c"])
    recipe(tmp_path, "c", [])
    assert closure(load_recipes(tmp_path), ("a", "c"), "test") == ["c", "b", "a"]


def test_dependency_cycles_are_named(tmp_path: Path):
    recipe(tmp_path, "a", ["b"])
    recipe(tmp_path, "b", ["a"])
    with pytest.raises(ConfigError) as caught:
        closure(load_recipes(tmp_path), ("a",), "test")
    assert caught.value.reason == "recipe-cycle"
    assert "a → b → a" in caught.value.message


def test_a_missing_recipe_names_who_wants_it(tmp_path: Path):
    recipe(tmp_path, "zlib", ["zlob"])
    recipe(tmp_path, "zlab", [])
    with pytest.raises(ConfigError) as caught:
        closure(load_recipes(tmp_path), ("zlib",), "test")
    assert caught.value.reason == "recipe-missing"
    assert "recipe 'zlib'" in caught.value.message


def test_a_recipe_must_have_its_folders_name(tmp_path: Path):
    recipe(tmp_path, "a", [], declared="b")
    with pytest.raises(ConfigError) as caught:
        load_recipes(tmp_path)
    assert caught.value.reason == "recipe-name"


@pytest.mark.parametrize("path", ["/../../etc/x", "/lib/../../x", "lib/x", "/", "/lib//x", "/lib/./x", "/lib/x/"])
def test_a_link_that_would_leave_the_sandbox_is_refused(tmp_path: Path, path: str):
    recipe(tmp_path, "a", [])
    file = tmp_path / "a" / "recipe.toml"
    file.write_text(file.read_text() + f'links = {{ "{path}" = "/in/musl" }}\n')
    with pytest.raises(ConfigError) as caught:
        load_recipes(tmp_path)
    assert caught.value.reason == "config-value"


def test_a_source_is_locked_once(tmp_path: Path):
    entry = f'[[source]]\nname = "a"\nversion = "1"\nsha256 = "{"0" * 64}"\nfile = "a.tar"\n'
    (tmp_path / "sources.lock").write_text(entry * 2)
    with pytest.raises(ConfigError) as caught:
        load_lock(tmp_path / "sources.lock")
    assert caught.value.reason == "source-duplicate"


@pytest.mark.parametrize("line", ['sha256 = "abc"', 'file = "../../etc/passwd"', 'pool = "pool/../x y"'])
def test_a_lock_entry_that_could_escape_is_refused(tmp_path: Path, line: str):
    fields = {"name": '"a"', "version": '"1"', "sha256": f'"{"0" * 64}"', "file": '"a.tar"'}
    fields[line.split(" = ")[0]] = line.split(" = ")[1]
    (tmp_path / "sources.lock").write_text("[[source]]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()))
    with pytest.raises(ConfigError) as caught:
        load_lock(tmp_path / "sources.lock")
    assert caught.value.reason == "config-value"

"""Settings: what is accepted, how mistakes are named and located, and that no text whatever gets past the checks."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from common.errors import SettingsError
from common.settings.model import MAX_BYTES, Network, Settings, SshKey, from_mapping, parse, parse_update
from common.settings.render import render
from common.settings.sshkey import expiry_problem, key_problem, normal_key, option_problem, source_problem
from common.settings.sshkey import line as key_line
from common.settings.update import Update, is_open, opens_in
from common.settings.zones import tzif, zones


def blob(*fields: bytes) -> str:
    return base64.b64encode(b"".join(len(field).to_bytes(4) + field for field in fields)).decode()


ED25519 = "ssh-ed25519 " + blob(b"ssh-ed25519", bytes(32)) + " me@example"
RSA_1024 = "ssh-rsa " + blob(b"ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 128)
MANY = 17 * "'::1',"
SECURITY = "sk-ssh-ed25519@openssh.com " + blob(b"sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:")
RSA_4096 = "ssh-rsa " + blob(b"ssh-rsa", b"\x01\x00\x01", b"\x00" + b"\xff" * 512)

FULL = f"""
hostname = "box-1.example"
timezone = "Europe/Berlin"

[network]
mode = "static"
interface = "eth0"
address = "192.0.2.10/24"
gateway = "192.0.2.1"
dns = ["192.0.2.1", "2001:db8::1"]

[ssh]
root-login = true

[[ssh.keys]]
account = "root"
key = "{ED25519}"

[[ssh.keys]]
key = "{RSA_4096}"

[[ssh.keys]]
account = "operator"
key = "{ED25519}"
from = ["10.0.0.0/8", "!10.1.0.0/16", "2001:db8::/32", "192.168.1.*"]
expires = "2027-01-31"
options = ["no-pty"]

[time]
servers = ["ntp.example", "192.0.2.5"]
[update]
channel = "https://updates.example/mixos"
fetch = "window"
apply = "reboot"
when = ["sat,sun 02:00-05:00"]
metered = ["wwan0"]
max-bytes = "64M"
"""


def test_everything():
    result = parse(FULL.encode(), "x.toml", Settings())
    assert result == Settings(
        hostname="box-1.example",
        timezone="Europe/Berlin",
        network=Network("static", "eth0", "192.0.2.10/24", "192.0.2.1", ("192.0.2.1", "2001:db8::1")),
        root_login=True,
        keys=(
            SshKey("root", ED25519),
            SshKey("admin", RSA_4096),
            SshKey(
                "operator",
                ED25519,
                ("10.0.0.0/8", "!10.1.0.0/16", "2001:db8::/32", "192.168.1.*"),
                "2027-01-31",
                ("no-pty",),
            ),
        ),
        servers=("ntp.example", "192.0.2.5"),
        update=Update(
            "https://updates.example/mixos", "window", "reboot", ("sat,sun 02:00-05:00",), ("wwan0",), 64 << 20
        ),
    )
    assert from_mapping(json.loads(json.dumps(result.as_mapping())), "stored", Settings()) == result


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('hostname = """\n[a' + " " * 60_000 + '"""\n', ":1:1: hostname: "),  # would take minutes
        ("a" + ".a" * 30_000 + " = 1\n", ":1:1: "),
        ("\nhostname = " + "9" * 5000 + "\n", ": not valid TOML"),
        ("\n\nhostname =", ":3:11: "),
        ("\nhostname = kitchen\n", ":2:12: not valid TOML: Invalid value"),
    ],
)
def test_what_takes_long_or_is_too_long(text, place):
    with pytest.raises(SettingsError) as caught:
        parse(text.encode(), "x.toml", Settings())
    assert caught.value.message.startswith(f"x.toml{place}")


def test_what_is_left_out_keeps_the_base():
    base = parse(FULL.encode(), "x.toml", Settings())
    assert parse(b"", "x.toml", base) == base
    changed = parse(b'hostname = "other"\n[network]\n', "x.toml", base)
    assert changed.hostname == "other"
    assert changed.network == Network()
    assert changed.keys == base.keys


NO_HOSTS = ("192.168.1.0/24", "192.168.1.255/24", "0.1.2.3/8", "240.0.0.1/8", "2001:db8::/64", "127.0.0.2/8")


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('hostnam = "x"', 1, "settings-unknown-key"),
        ('\n[ssh]\nroot_login = true', 3, "settings-unknown-key"),
        ('\n\n[[ssh.keys]]\naccount = "admin"\nkey = "x"', 5, "settings-value"),
        (f'[[ssh.keys]]\nkey = "{ED25519}"\n[[ssh.keys]]\naccount = "adm"\nkey = "{ED25519}"', 4, "settings-value"),
        ('hostname = 5', 1, "settings-type"),
        ('hostname = "-x"', 1, "settings-value"),
        ('hostname = "a_b"', 1, "settings-value"),
        ('timezone = "Europe/Berln"', 1, "settings-value"),
        ('timezone = "../../etc/passwd"', 1, "settings-value"),
        ('network = 1', 1, "settings-type"),
        ('[network]\nmode = "statc"', 2, "settings-value"),
        ('[network]\nmode = "static"', 1, "settings-value"),
        ('[network]\nmode = "dhcp"\naddress = "192.0.2.1/24"', 3, "settings-value"),
        ('[network]\nmode = "static"\naddress = "192.0.2.1"', 3, "settings-value"),
        ('[network]\nmode = "static"\naddress = "192.0.2.1/33"', 3, "settings-value"),
        ('[network]\nmode = "static"\naddress = "192.0.2.9/24"\ngateway = "192.0.3.1"', 4, "settings-value"),
        ('[network]\nmode = "static"\naddress = "192.0.2.9/24"\ngateway = "192.0.2.9"', 4, "settings-value"),
        ('[network]\nmode = "static"\naddress = "192.0.2.9/32"\ngateway = "192.0.2.9"', 4, "settings-value"),
        ('[network]\nmode = "static"\naddress = "192.0.2.9/32"\ngateway = "2001:db8::1"', 4, "settings-value"),
        ('[network]\ninterface = "eth0; reboot"', 2, "settings-value"),
        ('[network]\ndns = ["nine"]', 2, "settings-value"),
        ('[network]\ndns = "192.0.2.1"', 2, "settings-type"),
        ('[ssh]\nroot-login = "yes"', 2, "settings-type"),
        ('[[ssh.keys]]\naccount = "root"\nkey = "' + ED25519 + '"', 1, "settings-value"),
        (f'[[ssh.keys]]\nkey = "{ED25519}"\naccount = "nobody"', 3, "settings-value"),
        (f'[[ssh.keys]]\nkey = "{ED25519}"\nfrom = "10.0.0.0/8"', 3, "settings-type"),
        (f'[[ssh.keys]]\nkey = "{ED25519}"\nfrom = [{MANY}]', 3, "settings-type"),
        (f'[[ssh.keys]]\nkey = "{ED25519}"\nexpires = 2027-01-01T00:00:00', 3, "settings-type"),
        *[
            (f'[network]\nmode = "static"\naddress = "{bad}"', 3, "settings-value")
            for bad in NO_HOSTS
        ],
        *[
            (f'[network]\nmode = "static"\naddress = "192.168.1.9/24"\ngateway = "{bad}"', 4, "settings-value")
            for bad in ("192.168.1.0", "192.168.1.255")
        ],
        ('[network]\ndns = ["255.255.255.255"]', 2, "settings-value"),
        (f'[[ssh.keys]]\nkey = "{ED25519}"\ncommand = "sh"', 3, "settings-unknown-key"),
        ('[time]\nservers = ["a b"]', 2, "settings-value"),
        ('hostname = "x', 1, "settings-syntax"),
        ('a = 1\na = 2', 2, "settings-syntax"),
    ],
)  # fmt: skip
# case: B17
def test_mistakes_are_located(text, line, reason):
    with pytest.raises(SettingsError) as caught:
        parse(text.encode(), "mixos-preseed.toml", Settings())
    assert caught.value.reason == reason
    assert re.match(rf"mixos-preseed\.toml:{line}(:\d+)?: ", caught.value.message)


def test_all_mistakes_are_reported():
    with pytest.raises(SettingsError) as caught:
        parse(b'hostname = ""\ntimezone = "x"\nfoo = 1\n', "f", Settings())
    assert len(caught.value.message.splitlines()) == 3


def test_suggestion():
    with pytest.raises(SettingsError) as caught:
        parse(b'hostnam = "x"', "f", Settings())
    assert "hostname" in caught.value.message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"#" * (MAX_BYTES + 1), "settings-too-big"),
        (b'hostname = "\xff"', "settings-encoding"),
        (b"a = " + b"[" * 5000, "settings-syntax"),
    ],
)
def test_bounds(data, reason):
    with pytest.raises(SettingsError) as caught:
        parse(data, "f", Settings())
    assert caught.value.reason == reason


@pytest.mark.parametrize("key", [ED25519, RSA_4096, ED25519.rsplit(" ", 1)[0]])
def test_good_keys(key):
    assert key_problem(key) is None


@pytest.mark.parametrize(
    "key",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 " + blob(b"ssh-rsa", bytes(32)),
        "ssh-ed25519 " + blob(b"ssh-ed25519", bytes(31)),
        "ssh-ed25519 " + blob(b"ssh-ed25519", bytes(32), b"x"),
        "ssh-dss " + blob(b"ssh-dss", b"x"),
        RSA_1024,
        'command="sh" ' + ED25519,
        ED25519 + "\n" + ED25519,
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "ssh-ed25519 " + "A" * 9000,
    ],
)
def test_bad_keys(key):
    assert key_problem(key)


TEXT = st.text(max_size=20) | st.sampled_from(["static", "dhcp", "192.0.2.1/24", "192.0.2.1", "root", "eth0", "UTC"])
VALUE = st.recursive(
    TEXT | st.integers() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["mode", "interface", "address", "gateway", "dns", "root-login", "keys", "account", "key", "from", "x"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=10,
)


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.sampled_from(["hostname", "timezone", "network", "ssh", "time", "x"]), VALUE, max_size=5))
def test_accepted_settings_render_safely(document):
    try:
        result = from_mapping(document, "fuzz", Settings())
    except SettingsError:
        return
    files = render(result)
    for line in files["etc/mixos/network.conf"].data.decode().splitlines():
        assert line.startswith("#") or re.fullmatch(r'[A-Z]+=[A-Za-z0-9.:/_-]*|DNS="[0-9a-f.: ]*"', line)
    assert re.fullmatch(rb"[A-Za-z0-9.-]{1,64}\n", files["etc/hostname"].data)


@hypothesis_settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_an_error(data):
    try:
        parsed = parse(data, "fuzz", Settings())
    except SettingsError as error:
        parsed, reason = None, error.reason
    assert parsed is not None or reason.startswith("settings-")


def test_rendered_accounts():
    off = render(Settings(keys=(SshKey("admin", ED25519),)))
    assert b"PermitRootLogin no\nAllowUsers admin\n" in off["etc/ssh/sshd_config.d/10-accounts.conf"].data
    assert off["etc/ssh/authorized_keys/admin"].data.endswith(b"\nrestrict,pty " + ED25519.encode() + b"\n")
    assert ED25519.encode() not in off["etc/ssh/authorized_keys/root"].data
    on = render(Settings(root_login=True))
    assert b"AllowUsers admin root\n" in on["etc/ssh/sshd_config.d/10-accounts.conf"].data


def test_an_account_is_open_when_somebody_has_a_key_for_it():
    files = render(Settings(keys=(SshKey("agent", ED25519), SshKey("operator", RSA_4096))))
    assert b"\nAllowUsers admin operator agent\n" in files["etc/ssh/sshd_config.d/10-accounts.conf"].data
    assert files["etc/ssh/authorized_keys/agent"].data.endswith(b"\nrestrict " + ED25519.encode() + b"\n")
    assert files["etc/ssh/authorized_keys/operator"].data.endswith(b"\nrestrict,pty " + RSA_4096.encode() + b"\n")
    assert files["etc/ssh/authorized_keys/viewer"].data.count(b"\n") == 1


def test_limits_of_a_key_are_options_of_its_line():
    key = SshKey("viewer", ED25519, ("10.0.0.0/8", "!10.1.1.1"), "2027-01-31", ("no-pty",))
    written = render(Settings(keys=(key,)))["etc/ssh/authorized_keys/viewer"].data.splitlines()[-1].decode()
    assert written == f'restrict,from="10.0.0.0/8,!10.1.1.1",expiry-time="20270131Z" {ED25519}'
    assert key_line(SECURITY, True, (), "", ("verify-required",)) == f"restrict,pty,verify-required {SECURITY}"


@pytest.mark.parametrize(
    "sources", [("::1",), ("10.0.0.0/8", "!10.0.0.1"), ("192.0.2.?",), ("2001:db8:*",), ("*", "!10.*"), ("fe80::/10",)]
)
def test_good_sources(sources):
    assert source_problem(sources) is None


@pytest.mark.parametrize(
    "pattern",
    [
        "", "host.example", "*.example", "10.0.0.1/8", "10.0.0.0/255.0.0.0", "10.0.0.0/33", "fe80::1%eth0", "*\n", "-",
        '10.*",command="sh', "1 2*", "10.0.0.0/8,!*", "!10.0.0.1", "!!10.0.0.1", "10.0.0.0 /8", "10.0.0.0/+8",
    ],
)  # fmt: skip
def test_bad_sources(pattern):
    assert source_problem((pattern,))


@pytest.mark.parametrize(
    "day", ["", "2027-1-1", "2027-02-30", "0000-01-01", "tomorrow", "2027-01-01Z", "\u0662027-01-01", "20270101"]
)
def test_bad_days(day):
    assert expiry_problem(day)


@pytest.mark.parametrize(
    ("options", "key", "good"),
    [
        (("no-pty",), ED25519, True),
        (("verify-required",), ED25519, False),
        (("verify-required", "no-pty"), SECURITY, True),
        (("pty",), ED25519, False),
        (('command="sh"',), ED25519, False),
        (("no-touch-required",), ED25519, False),
    ],
)
def test_options(options, key, good):
    assert (option_problem(options, key) is None) is good


@given(st.lists(st.text(alphabet='0123456789abf.:/*?!%," \n', max_size=12), min_size=1, max_size=3))
def test_accepted_sources_stay_one_option(sources):
    if source_problem(sources) is None:
        written = key_line(ED25519, True, sources, "", ())
        assert written == f'restrict,pty,from="{",".join(sources)}" {ED25519}'
        assert re.fullmatch(r'restrict,pty,from="[0-9A-Fa-f.:/*?!,]+" ssh-ed25519 [^"\n]*', written)


def test_zones_are_posix_rules():
    table = zones()
    assert table["Europe/Berlin"] == "CET-1CEST,M3.5.0,M10.5.0/3"
    assert all(re.fullmatch(r"[A-Za-z<>+0-9:,./-]+", rule) for rule in table.values())


def test_localtime_file_is_valid(tmp_path):
    zoneinfo = pytest.importorskip("zoneinfo")
    from datetime import datetime

    path = tmp_path / "zone"
    path.write_bytes(tzif(zones()["America/New_York"]))
    with path.open("rb") as stream:
        zone = zoneinfo.ZoneInfo.from_file(stream)
    assert datetime(2030, 7, 1, tzinfo=zone).utcoffset().total_seconds() == -4 * 3600
    assert datetime(2030, 1, 1, tzinfo=zone).utcoffset().total_seconds() == -5 * 3600


def test_keys_as_a_list_of_texts_are_one_mistake_that_says_how():
    with pytest.raises(SettingsError) as caught:
        parse(b'[ssh]\nkeys = ["ssh-ed25519 AAAA"]\n', "f", Settings())
    assert caught.value.message == "f:2:1: ssh.keys: must be at most 64 tables [[ssh.keys]]"


# case: B7
def test_a_byte_order_mark_is_not_of_the_text():
    assert parse(b"\xef\xbb\xbfhostname = 'x'", "f", Settings()).hostname == "x"
    with pytest.raises(SettingsError) as caught:
        parse("hostname = 'x'".encode("utf-16"), "f", Settings())
    assert caught.value.reason == "settings-encoding"
    assert caught.value.message == "f:1: UTF-16, not UTF-8: save it as UTF-8"


# case: B17
@pytest.mark.parametrize("good", ["10.0.0.0/31", "10.0.0.1/32", "192.168.0.255/16", "2001:db8::/127", "169.254.3.4/16"])
def test_addresses_of_hosts(good):
    text = f'[network]\nmode = "static"\naddress = "{good}"'
    assert parse(text.encode(), "f", Settings()).network.address == good


# case: B18
@pytest.mark.parametrize("blank", ["  ", "\t", " \t "])
def test_keys_as_people_paste_them(blank):
    pasted = f"{blank}{ED25519.replace(' ', blank)}{blank}"
    (key,) = from_mapping({"ssh": {"keys": [{"key": pasted}]}}, "f", Settings()).keys
    assert key.key == ED25519


# case: B18
@pytest.mark.parametrize("kind", ["OPENSSH PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY"])
def test_a_private_key_is_called_one(kind):
    lines = f"-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n"
    assert "private key" in str(key_problem(normal_key(lines)))


# case: B18
def test_a_day_may_be_a_day_of_toml():
    text = f'[[ssh.keys]]\nkey = "{ED25519}"\nexpires = 2027-01-01'
    assert parse(text.encode(), "f", Settings()).keys[0].expires == "2027-01-01"
    with pytest.raises(SettingsError) as caught:
        parse(b"hostname = 2027-01-01", "f", Settings())
    assert "datetime" not in caught.value.message


# -- updates -----------------------------------------------------------------------------------------------------------


def of_update(table: str) -> Update:
    return parse_update(table.encode(), "update.toml")


def test_the_file_of_updates_is_the_table_and_is_written_as_it_is_read():
    full = parse(FULL.encode(), "x.toml", Settings())
    assert of_update(full.update.toml()) == full.update
    files = render(full)
    assert parse_update(files["etc/mixos/update.toml"].data, "update.toml") == full.update
    assert "etc/mixos/update.toml" not in render(Settings())


def test_a_preseed_keeps_what_it_does_not_say_of_updates():
    base = parse(FULL.encode(), "x.toml", Settings())
    assert parse(b'[update]\napply = "manual"', "x", base).update == replace(base.update, apply="manual")


@pytest.mark.parametrize(
    "table",
    [
        'channel = "ftp://updates.example"',
        'channel = "updates.example"',
        'channel = "https://user:secret@updates.example/"',
        'channel = "https://updates.example/x.mixb?y"',
        'channel = "https://updates.example/#a"',
        'channel = "https://updates.example:0/"',
        'channel = "https://[::1/"',
        'channel = "https://updates.example/ x"',
        """channel = 'https://updates.example/"'""",
        'fetch = "always"',
        'apply = "now"',
        'apply = "window"',
        'when = ["02:00"]',
        'when = ["25:00-26:00"]',
        'when = ["02:00-02:00"]',
        'when = ["saturday 02:00-03:00"]',
        'when = ["sat-sun- 02:00-03:00"]',
        'when = ["24:00-02:00"]',
        'metered = ["lo!"]',
        "max-bytes = -1",
        'max-bytes = "64 MB"',
        "max-bytes = true",
    ],
)
def test_updates_that_are_refused(table):
    with pytest.raises(SettingsError) as caught:
        of_update(f"\n{table}\n")
    assert caught.value.reason == "settings-value"
    assert caught.value.message.startswith(f"update.toml:2:1: {table.split(' ')[0]}: ")


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("02:00-05:00", ["mon 02:00", "sun 04:59"], ["mon 01:59", "mon 05:00"]),
        ("00:00-24:00", ["mon 00:00", "sun 23:59"], []),
        ("sun 22:00-04:00", ["sun 22:00", "mon 03:59"], ["sun 03:00", "mon 04:00", "mon 22:00"]),
        ("fri-mon 10:00-11:00", ["fri 10:00", "sun 10:30", "mon 10:59"], ["tue 10:30", "thu 10:30"]),
        ("sat,tue 10:00-11:00", ["sat 10:00", "tue 10:00"], ["sun 10:00", "mon 10:00"]),
    ],
)
def test_maintenance_windows(window, inside, outside):
    for words, expected in ((inside, True), (outside, False)):
        for word in words:
            day, _, clock = word.partition(" ")
            at = datetime.strptime(clock, "%H:%M") - timedelta(days=datetime(1900, 1, 1).weekday())
            at += timedelta(days=["mon", "tue", "wed", "thu", "fri", "sat", "sun"].index(day))
            assert is_open([window], at) == expected, word


@given(st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)), st.integers(0, 1439), st.integers(0, 1440))
def test_a_window_opens_when_it_is_said_to(at, begin, end):
    if end == begin or (begin, end) == (0, 1440):
        return
    day = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"][(begin + end) % 7]
    window = f"{day} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    wait = opens_in([window], at)
    assert wait is not None
    assert is_open([window], at + timedelta(seconds=wait))
    assert wait == 0 or not is_open([window], at + timedelta(seconds=wait - 1))
    assert opens_in([], at) is None


def test_what_a_device_does_by_itself():
    night, day = datetime(2026, 11, 28, 3), datetime(2026, 11, 28, 12)  # a Saturday
    free = Update("https://updates.example")
    assert free.no_fetch(day, "eth0", 1 << 40) is None
    assert free.no_apply(night) == "manual"
    careful = Update("https://updates.example", "window", "window", ("sat 02:00-05:00",), ("wwan0",), 100)
    assert careful.no_fetch(night, "eth0", 100) is None
    assert careful.no_fetch(night, "eth0", 101) == "size"
    assert careful.no_fetch(night, "wwan0", 100) == "metered"
    assert careful.no_fetch(day, "eth0", 100) == "window"
    assert (careful.no_apply(night), careful.no_apply(day)) == (None, "window")
    assert Update(fetch="manual", apply="reboot").no_fetch(night, "eth0", 1) == "manual"
    assert Update(apply="reboot").no_apply(night) == "reboot"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ('\n  hostnam = "x"\n', "f:2:3: hostnam: "),
        ('\n[update]\n  "a.b" = 1\n', "f:3:3: update.a.b: "),
        ('\nssh.keys = [\n  {account = "x", key = "y"},\n]\n', "f:2:1: ssh.keys[0].account: "),
        ('[[ssh.keys]]\n[[ssh.keys]]\naccount = "x"\n', "f:1:1: ssh.keys[0].key: "),
    ],
)
def test_a_mistake_has_line_and_column(text, start):
    with pytest.raises(SettingsError) as caught:
        parse(text.encode(), "f", Settings())
    assert caught.value.message.startswith(start)


def test_a_password_in_the_address_of_a_channel_is_not_repeated():
    with pytest.raises(SettingsError) as caught:
        of_update('channel = "https://me:secret@updates.example/"')
    assert "secret" not in caught.value.message


def test_the_file_of_updates_has_no_table():
    with pytest.raises(SettingsError) as caught:
        of_update('# mine\n[update]\nfetch = "any"\n')
    assert caught.value.message.startswith("update.toml:2:1: update: unknown key")

"""`mixctl vpn`: WireGuard tunnels, their peers, and configurations for the other side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from common.errors import ConfigError, MixosError, UsageError
from common.text import is_utf16
from common.units import duration, size
from daemon.client.cli.change import change_options, changed, wish
from daemon.client.cli.common import Function, ask, json_option, show, sure, write_file
from daemon.client.console.names import names as known
from daemon.client.show import Column, Listing

_QR_BYTES = 2953  # ISO/IEC 18004: version 40, level L
_SECONDS = 100.0  # looking up names of endpoints takes as long as the name servers need to give up


def _interface_option(function: Function) -> Function:
    text = "Which VPN interface, when there are several."
    return click.option("--interface", shell_complete=known("tunnel"), help=text)(function)


def _params(**values: object) -> dict[str, object]:
    """Parameters of a call, without what was not given."""
    return {key.replace("_", "-"): value for key, value in values.items() if value not in (None, (), False)}


@click.group()
def vpn() -> None:
    """Set up WireGuard.

    \b
    Example:
      mixctl vpn init --endpoint vpn.example.org
      mixctl vpn add-peer phone --qr
      mixctl vpn status
    """


@vpn.command()
@json_option
def status(as_json: bool) -> None:
    """Show tunnels and peers: last handshake, traffic, endpoint.

    \b
    Example:
      mixctl vpn status
    """
    show(ask("vpn.status"), as_json, _status)


def _status(result: dict[str, Any]) -> str:
    if not result["interfaces"]:
        return "there is no VPN; make one: mixctl vpn init"
    return "\n\n".join(_tunnel(row) for row in result["interfaces"])


def _tunnel(row: Mapping[str, Any]) -> str:
    lines = [f"{row['name']}  {row['state']}  port {row['port']}  {' '.join(row['addresses'])}"]
    lines += [f"public key  {row['public-key']}"] if row["public-key"] else []
    lines += [f"problem: {row['problem']}"] if row["problem"] else []
    if row["peers"]:
        lines.append(_PEERS.table(row["peers"]))
    return "\n".join(lines)


_PEERS = Listing(
    "vpn.status interfaces[].peers[]",
    (
        Column("peer", "name"),
        Column("state", "state"),
        Column("last handshake", "handshake-age", duration),
        Column("received", "received", size),
        Column("sent", "sent", size),
        Column("endpoint", "endpoint"),
        Column("allowed ips", "allowed-ips"),
    ),
)


@vpn.command()
@click.option("--name", default="wg0", show_default=True, help="The interface's name.")
@click.option("--address", "addresses", multiple=True, help="Address with prefix length; default: random private ones.")
@click.option("--port", type=click.IntRange(1, 65535), default=51820, show_default=True, help="UDP port.")
@click.option("--endpoint", help="How clients reach this device: a name or address, port optional.")
@click.option("--client-dns", multiple=True, help="Name server that clients' configurations name.")
@click.option("--client-routes", multiple=True, help="What clients send into the tunnel; default: its own networks.")
@change_options
def init(as_json: bool, **values: Any) -> int:
    """Make a WireGuard interface with a new key and bring it up.

    \b
    Example:
      mixctl vpn init --endpoint vpn.example.org
      mixctl vpn init --name wg1 --address 10.9.0.1/24 --port 51821 --client-routes 0.0.0.0/0 --client-routes ::/0
    """
    result = ask("vpn.init", wish(values), seconds=_SECONDS)
    show(result, as_json, lambda row: f"{_state(row)}\naddresses   {' '.join(row['addresses'])}")
    return _code(result)


def _state(row: Mapping[str, Any]) -> str:
    if "applied" in row and not row["applied"]:
        return changed(row)
    lines = [f"{row['interface']} is {row['state']}"]
    lines += [f"problem: {row['problem']}"] if row["problem"] else []
    lines += [f"warning: {text}" for text in row["warnings"]]
    lines += [f"public key  {row['public-key']}"] if row.get("public-key") else []
    lines += [_trial(row)] if row.get("confirm") else []
    return "\n".join(lines)


def _code(row: Mapping[str, Any]) -> int:
    """1 when a change was made and the tunnel, or one of them, is not up as it should be; `remove` and the like differ:
    what they are asked for is done."""
    return int(bool(row["applied"] and (row.get("problem") or row.get("down"))))


def _trial(row: Mapping[str, Any]) -> str:
    return f"on trial for {row['confirm']} s; keep it with: mixctl confirm"


def _shown(qr: bool) -> dict[str, int]:
    """How much of a configuration can be shown: what cannot must not be made, since its key would be lost."""
    return {"config-bytes": _QR_BYTES} if qr else {}


def _print_config(text: str, qr: bool) -> None:
    """A configuration, as text for a file or as a code for a phone's camera, on standard output."""
    if not qr:
        click.echo(text, nl=False)
        return
    import io

    import segno

    try:
        code = segno.make_qr(text, error="l")
    except segno.DataOverflowError as error:
        raise MixosError(
            f"{len(text)} characters are too many for a QR code", reason="vpn-qr-size", hint="leave out --qr"
        ) from error
    picture = io.StringIO()
    code.terminal(out=picture, compact=True)
    click.echo(picture.getvalue(), nl=False)


def _remark(row: Mapping[str, Any]) -> None:
    """What is not part of a configuration goes to standard error: `> phone.conf` gives a clean file."""
    if row.get("problem"):
        click.echo(f"mixctl: {row['interface']} is down: {row['problem']}", err=True)
    for text in row["warnings"]:
        click.echo(f"mixctl: {text}", err=True)
    if row.get("confirm"):
        click.echo(f"mixctl: {_trial(row)}", err=True)


@vpn.command("add-peer")
@click.argument("name")
@_interface_option
@click.option("--allowed-ips", multiple=True, help="Networks behind the peer; besides, it gets the next free address.")
@click.option("--public-key", help="The peer's own public key; default: make a key pair for it.")
@click.option("--psk", is_flag=True, help="Add a preshared key.")
@click.option("--keepalive", type=click.IntRange(0, 65535), default=0, help="Seconds between packets when idle.")
@click.option("--endpoint", help="Where the peer is reached, host:port, if it has a fixed place.")
@click.option("--keep-key", is_flag=True, help="Keep the peer's private key here, so that `qr` can show it again.")
@click.option("--qr", is_flag=True, help="Print the configuration as a QR code.")
@change_options
def add_peer(name: str, qr: bool, as_json: bool, **values: Any) -> int:
    """Add a peer and print its configuration: once, since its private key is not kept.

    \b
    Example:
      mixctl vpn add-peer laptop --psk > laptop.conf
      mixctl vpn add-peer phone --keepalive 25 --qr
      mixctl vpn add-peer office --public-key 4qh4UzGyx8HwTw3bTY6hDAYxhIMHTX4Ogz9rV2R5Aic= --allowed-ips 10.8.0.9/32
    """
    result = ask("vpn.add-peer", wish({"peer": name, **values, **_shown(qr)}), seconds=_SECONDS)
    if as_json or not result["applied"]:
        show(result, as_json, changed)
        return _code(result)
    _print_config(result["config"], qr)
    _remark(result)
    if "PrivateKey = " in result["config"] and not values["keep_key"]:
        click.echo("mixctl: this is shown once; the private key in it is not kept on this device", err=True)
    return _code(result)


@vpn.command()
@click.argument("name", shell_complete=known("peer"))
@_interface_option
def qr(name: str, interface: str | None) -> None:
    """Show a peer's configuration again as a QR code, if it was added with --keep-key.

    A private key that this device keeps can be read by whoever has root here; one that it does not keep is safe, and
    can only be replaced (`rotate NAME --key`).

    \b
    Example:
      mixctl vpn qr phone
    """
    _print_config(ask("vpn.config", _params(peer=name, interface=interface))["config"], True)


@vpn.command()
@click.argument("name", shell_complete=known("peer"))
@_interface_option
@change_options
def remove(name: str, as_json: bool, **values: object) -> None:
    """Remove a peer and its secrets; its session ends at once.

    \b
    Example:
      mixctl vpn remove laptop
    """
    show(ask("vpn.remove", wish({"peer": name, **values}), seconds=_SECONDS), as_json, changed)


@vpn.command()
@click.argument("interface", shell_complete=known("tunnel"))
@click.option("--yes", is_flag=True, help="Do not ask.")
@change_options
def delete(interface: str, yes: bool, as_json: bool, **values: object) -> None:
    """Remove a whole interface with its peers and keys.

    \b
    Example:
      mixctl vpn delete wg1 --yes
    """
    if not yes and not values["dry_run"]:
        sure(f"Remove {interface} with all its peers and keys?")
    show(ask("vpn.delete", wish({"interface": interface, **values}), seconds=_SECONDS), as_json, changed)


@vpn.command()
@click.argument("name", required=False, shell_complete=known("peer"))
@_interface_option
@click.option("--key", is_flag=True, help="Make a new key pair for the peer, instead of a new preshared key.")
@click.option("--qr", is_flag=True, help="Print the peer's configuration as a QR code.")
@change_options
def rotate(name: str | None, qr: bool, as_json: bool, **values: object) -> int:
    """Make new keys: this device's own, or with NAME a peer's preshared key. Prints what the other side must change.

    \b
    Example:
      mixctl vpn rotate
      mixctl vpn rotate laptop
      mixctl vpn rotate phone --key --qr
    """
    result = ask("vpn.rotate", wish({"peer": name, **values, **_shown(qr)}), seconds=_SECONDS)
    if as_json or not result["applied"]:
        show(result, as_json, changed)
        return _code(result)
    for peer, text in result["configs"].items():
        if len(result["configs"]) > 1:
            click.echo(f"# --- {peer}")
        _print_config(text, qr)
    _remark(result)
    return _code(result)


@vpn.command()
@click.argument("interface", required=False, shell_complete=known("tunnel"))
@change_options
def up(as_json: bool, **values: object) -> None:
    """Bring an interface up, now and at every start.

    \b
    Example:
      mixctl vpn up
    """
    show(ask("vpn.up", wish(values), seconds=_SECONDS), as_json, _state)


@vpn.command()
@click.argument("interface", required=False, shell_complete=known("tunnel"))
@change_options
def down(as_json: bool, **values: object) -> None:
    """Take an interface down until `up`.

    \b
    Example:
      mixctl vpn down wg0
    """
    show(ask("vpn.down", wish(values), seconds=_SECONDS), as_json, _state)


@vpn.command()
@change_options
def apply(as_json: bool, **values: object) -> int:
    """Put an edited vpn.toml in force. Peers that did not change keep their sessions.

    \b
    Example:
      mixctl vpn apply
    """
    result = ask("vpn.apply", wish(values), seconds=_SECONDS)
    show(result, as_json, _applied)
    return _code(result)


def _applied(result: Mapping[str, Any]) -> str:
    if not result["applied"]:
        return changed(result)
    lines = [f"{name} is up" for name in result["up"]]
    lines += [f"{name or 'vpn.toml'}: {text}" for name, text in result["down"].items()]
    lines += [_trial(result)] if result["confirm"] else []
    return "\n".join(lines) or "nothing is up"


@vpn.command("import")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@click.option("--name", help="The interface's name; default: the file's, without .conf.")
@change_options
def import_(file: Any, name: str | None, as_json: bool, **values: object) -> int:
    """Make an interface from a configuration file of wg-quick, and bring it up. "-" reads standard input.

    \b
    Example:
      mixctl vpn import provider.conf --name wg1
    """
    from pathlib import PurePath

    from common.netvalues import interface_name
    from daemon.parts.vpn.wgquick import MAX_BYTES

    label = file.name if isinstance(file.name, str) and file.name != "<stdin>" else "standard input"
    if name is None:
        name = PurePath(label).name.removesuffix(".conf")
        try:
            interface_name(name)
        except ValueError as error:
            raise UsageError(str(error), reason="vpn-import", hint="say what it is called: --name NAME") from error
    try:
        text = file.read(MAX_BYTES + 1)
    except UnicodeDecodeError as error:
        hint = "it looks like UTF-16: save it as UTF-8" if is_utf16(error.object) else None
        raise ConfigError(f"{label}: not UTF-8 text", reason="vpn-import", hint=hint) from error
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{label} has more than {MAX_BYTES} bytes", reason="vpn-import")
    params = {"name": name, "text": text, "file": label[-200:], **wish(values)}
    result = ask("vpn.import", params, seconds=_SECONDS)
    show(result, as_json, lambda row: f"{_state(row)}\npeers       {', '.join(row['peers']) or 'none'}")
    return _code(result)


@vpn.command()
@click.argument("interface", required=False, shell_complete=known("tunnel"))
@json_option
def export(interface: str | None, as_json: bool) -> None:
    """Print an interface as wg-quick writes it, without its secrets.

    \b
    Example:
      mixctl vpn export wg0
    """
    result = ask("vpn.export", _params(interface=interface), seconds=_SECONDS)
    if as_json:
        show(result, as_json, str)
    else:
        write_file(result["config"])

"""The commands of `mixctl`, in click: one file per verb, imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

# verb → (module below daemon, what it does). The text stands here so that `mixctl --help` imports nothing.
VERBS: dict[str, tuple[str, str]] = {
    "status": ("parts.system.verbs", "Show version, slot, health, network and hardening of this device."),
    "boot": ("parts.system.boot", "Show where the time of the last boot went."),
    "service": ("parts.service.verbs", "List, start, stop and watch services."),
    "sandbox": ("parts.sandbox.verbs", "Run a command confined; say what is enforced."),
    "net": ("parts.net.verbs", "Look at and set up the network."),
    "vpn": ("parts.vpn.verbs", "WireGuard tunnels and their peers."),
    "firewall": ("parts.firewall.verbs", "What may reach this device, and what it forwards."),
    "mdns": ("parts.mdns.verbs", "The device's name and services on the local network."),
    "proxy": ("parts.proxy.verbs", "The proxy that everything on this device uses."),
    "storage": ("parts.storage.verbs", "Look at disks and at what fills them; limit what units keep."),
    "backup": ("parts.backup.verbs", "Keep settings, keys and state of this device in a file, and put them back."),
    "top": ("parts.metrics.top", "Watch what the device is busy with."),
    "metrics": ("parts.metrics.verbs", "Figures of the machine and its services."),
    "events": ("parts.api.events", "Show what happens on the device, as it happens."),
    "audit": ("parts.api.audit", "Show or check the log of who changed what."),
    "config": ("parts.config.verbs", "Look at earlier configurations and go back to one."),
    "console": ("client.cli.console", "Open the console: commands without the word mixctl."),
    "ping": ("parts.system.verbs", "Check that the daemon answers."),
    "reboot": ("parts.system.verbs", "Stop everything in order and start again."),
    "poweroff": ("parts.system.verbs", "Stop everything in order and switch off."),
    "completion": ("client.cli.completion", "Print the completion script for a shell."),
}


class Verbs(click.Group):
    """A group that imports a verb's module only when the verb is used. A module holds `<verb>` as a click command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the table."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command behind a verb."""
        if cmd_name not in VERBS:
            return None
        command = getattr(import_module(f"daemon.{VERBS[cmd_name][0]}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click's, with a suggestion for a misspelt verb."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], VERBS, n=1)
            ctx.fail(f"there is no command '{args[0]}'" + (f"; did you mean '{near[0]}'?" if near else ""))
        return super().resolve_command(ctx, args)


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from daemon.parts.system.facts import release

        click.echo(f"mixctl {release().get('MIXOS_VERSION', 'unknown')}")
        context.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Show the version."
)
def cli() -> None:
    """Ask and steer this MixOS device.

    \b
    Example:
      mixctl status
      mixctl status --json
    """

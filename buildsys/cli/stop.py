"""mixos stop"""

from __future__ import annotations

import click

from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.vm import Vm
from image import qemu


@click.command()
@click.option(
    "--timeout", default=60, show_default=True, help="Seconds for a clean shutdown before the plug is pulled."
)
@json_option
@pass_context
def stop(context: Context, timeout: int, as_json: bool) -> None:
    """Shut the running machine down.

    Example: mixos stop
    """
    vm = Vm(context.project, context.project.out / "run")
    how = qemu.stop(vm.running(), timeout)
    texts = {"powerdown": "the machine shut down", "quit": "the machine did not shut down in time; it was switched off"}
    emit({"stopped": how}, as_json, texts.get(how, "the machine was killed"))

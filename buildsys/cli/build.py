"""mixos build"""

from __future__ import annotations

import click

from buildsys.cli.context import Context, build_options, emit, options, pass_context, progress
from buildsys.export import export
from buildsys.plan import IMAGE_TARGET
from buildsys.revision import Revision
from buildsys.session import open_session


@click.command()
@click.argument("targets", nargs=-1)
@build_options
@pass_context
def build(
    context: Context,
    targets: tuple[str, ...],
    kernel_source: str | None,
    offline: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Build TARGETS (default: the disk image, into out/, or where --out of `mixos` says).

    Example: mixos build · mixos build kernel · mixos build --kernel-source ~/linux-6.6.9
    """
    project = context.project
    wants_image = not targets or "image" in targets
    names = [name for name in targets if name != "image"] + ([IMAGE_TARGET] if wants_image else [])
    log = project.image_file.with_name("build.log")  # reads the configuration: a mistake in it leaves no out/ behind
    begun = Revision.of(project) if wants_image else Revision(None)
    # The JSON stream on stdout is the events, one a line; the closing object is the last line.
    with (
        progress(as_json, log) as sink,
        open_session(project, options(kernel_source, offline, jobs), sink) as session,
    ):
        results = session.build([*names, *(["kernel", "rootfs"] if wants_image else [])])
        session.sound(name for name in targets if name != "image")  # export looks at what it copies
        exported = export(session, results, begun) if wants_image else None
        paths = {name: str(session.executor.store.tree(results[name].output)) for name in names}
    if exported is not None:
        data = {"image": str(exported.image), "manifest": str(exported.manifest), "outputs": paths}
        emit(data, as_json, f"{exported.size_report.read_text()}\nimage: {exported.image}")
    else:
        emit({"outputs": paths}, as_json, "\n".join(f"{name}: {path}" for name, path in paths.items()))

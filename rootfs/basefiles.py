"""The package `base-files`: skeleton, rendered templates, and the files made from the image's settings.

Data beside this module: `skeleton/` (copied), `templates/` (Jinja2; the suffix .j2 goes), `tree.toml` (folders, links,
owners, modes). The result is an artifact like any other, so that the root is made of artifacts alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from buildsys.job import Job
from common import toml
from common.efi import additions
from common.errors import CheckError, ConfigError, SettingsError
from common.settings.model import Locate, Settings, from_mapping
from common.settings.render import render
from common.trust import ANCHORS
from packages.mix.artifact import Metadata, write_artifact
from packages.mix.manifest import walk

SERVICES = ("sshd", "network", "console", "mixosd", "syslogd")
SETTINGS_PATH = "usr/lib/mixos/settings.json"
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}")


def build(job: Job) -> None:
    """Action: inputs `rootfs` (this folder), `kernel-report` (the kernel's report.json), `keys` if there are any (what
    releases are trusted by), `additions` if there are any (to the databases of Secure Boot) → artifact `base-files`.

    Parameters: `version`, `sequence`, `floor`, `variant`; `build_id`; `settings` (tables as in mixos-preseed.toml);
    `kernel` ({source, requested, fallback: bool, note}: where it is from, what was asked for, and why it differs);
    optional `services` (subset of SERVICES; default all). Raises ConfigError for wrong settings (reasons of
    `common.settings.model`, `service-unknown`, `version-syntax`), SignatureListError for additions that are none,
    CheckError `template` for a template that cannot be rendered.
    """
    data, tree = job.inputs["rootfs"], job.work / "tree"
    settings = read_settings(job.params.get("settings", {}))
    layout = toml.loads((data / "tree.toml").read_text(encoding="utf-8"))
    shutil.copytree(data / "skeleton", tree, symlinks=True)
    for folder in layout["directories"]:
        (tree / folder).mkdir(parents=True, exist_ok=True)
    for link, target in layout["symlinks"].items():
        (tree / link).parent.mkdir(parents=True, exist_ok=True)
        (tree / link).symlink_to(target)
    report = json.loads(job.inputs["kernel-report"].read_bytes())
    render_templates(data / "templates", tree, context(job.params, report["release"], job.epoch))
    for path, file in render(settings).items():
        _write(tree / path, file.data)
    if "keys" in job.inputs:
        for anchor in job.inputs["keys"].iterdir():
            _write(tree / ANCHORS.relative_to("/") / anchor.name, anchor.read_bytes())
    if "additions" in job.inputs:
        for one in additions.read(job.inputs["additions"]):
            name = additions.file_name(one.number, one.variable)
            _write(tree / additions.FOLDER.relative_to("/") / name, one.data)
    _write(tree / SETTINGS_PATH, json.dumps(settings.as_mapping(), indent=1, ensure_ascii=False).encode() + b"\n")
    metadata = Metadata.of(
        {
            "name": "base-files",
            "version": job.params["version"],
            "summary": "Skeleton, init scripts and settings of the system",
            "license": "Apache-2.0",
            "homepage": "",
            "attributes": layout["attributes"],
        }
    )
    write_artifact(tree, job.out, metadata)


def read_settings(table: Mapping[str, Any], where: str = "settings", locate: Locate = lambda path: None) -> Settings:
    """The image's settings over the defaults. `where` names the file, `locate` finds the place of a dotted key.

    Raises ConfigError.
    """
    try:
        return from_mapping(table, where, Settings(), locate)
    except SettingsError as error:
        raise ConfigError(error.message, reason=error.reason) from error


def context(params: Mapping[str, Any], release: str, epoch: int) -> dict[str, object]:
    """What templates may use. Values end up in shell-readable files, so their characters are checked here."""
    version, services = params["version"], params.get("services", list(SERVICES))
    if not _VERSION.fullmatch(version):
        raise ConfigError(f"version {version!r} is not usable", reason="version-syntax", hint="for example 0.1.0")
    unknown = sorted(set(services) - set(SERVICES))
    if unknown:
        raise ConfigError(
            f"unknown service {unknown[0]!r}", reason="service-unknown", hint=f"known: {', '.join(SERVICES)}"
        )
    kernel = {key: _plain(str(params["kernel"].get(key, ""))) for key in ("source", "requested", "note")}
    return {
        "version": version,
        "sequence": params.get("sequence", 0),
        "floor": params.get("floor", 0),
        "variant": params.get("variant", "default"),
        "build_id": _plain(str(params["build_id"])),
        "profile": _plain(str(params.get("profile", "release"))),
        "epoch": epoch,
        "services": services,
        "kernel": {**kernel, "release": _plain(release), "fallback": bool(params["kernel"].get("fallback", False))},
    }


def _plain(text: str) -> str:
    """Text that is safe between double quotes in os-release(5): one line, none of the shell's special characters."""
    return re.sub(r"[^A-Za-z0-9 .,:;+()/_~=@-]", "-", text)[:300]


def render_templates(folder: Path, tree: Path, values: Mapping[str, object]) -> None:
    """Render every `*.j2` below `folder` to the same place in `tree`; a name that is not defined is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # the output is configuration, not HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for path, _ in sorted(walk(folder)):
        if not path.endswith(".j2"):
            continue
        try:
            text = environment.get_template(path).render(values)
        except jinja2.TemplateError as error:
            raise CheckError(f"rootfs/templates/{path}: {error}", reason="template") from error
        _write(tree / path.removesuffix(".j2"), text.encode())


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)

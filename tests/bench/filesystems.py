"""squashfs with zstd beside EROFS with lz4hc: size of the root and time of a boot, everything else equal."""

from __future__ import annotations

import re
from dataclasses import replace

from buildsys.project import Project
from tests.bench import boots, builds
from tests.bench.figures import Figure

GROUP = "root file systems, side by side"
NAMES = {"squashfs": "squashfs, zstd", "erofs": "EROFS, lz4hc"}


def compare(project: Project, count: int) -> list[Figure]:
    """Build and boot the image with each file system."""
    found: list[Figure] = []
    for kind, name in NAMES.items():
        with builds.copy_of(project) as copy:
            path = copy / "mixos.toml"
            text = re.sub(r"(?m)^filesystem\s*=.*\n", "", path.read_text())
            path.write_text(text.replace("[image]\n", f'[image]\nfilesystem = "{kind}"\nmax-root = "256M"\n', 1))
            builds.build(copy)
            other = Project.at(copy)
            (size,) = [row for row in builds.sizes(other) if row.name.startswith("root file system")]
            found.append(replace(size, group=GROUP, name=f"{name}: size"))
            found += boots.figures(GROUP, name, boots.mixos(other, count)[1:])
    return found

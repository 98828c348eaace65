"""What a checkout is: which commit, and whether its files are those of the commit. Git is asked, and may be missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from buildsys.project import Project
from buildsys.run import ANY_STATUS, run
from common.errors import CheckError, HostError

_SECONDS = 60.0
_NAMED = 5  # changed files that a message names


@dataclass(frozen=True)
class Revision:
    """commit: in hex, None when the project is no Git checkout. changes: files that are not as in it, a few of them."""

    commit: str | None
    changes: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Whether the commit says all about what is built from the checkout."""
        return self.commit is not None and not self.changes

    def as_json(self) -> dict[str, object]:
        """As a build's manifest records it."""
        return {**asdict(self), "clean": self.clean}

    @classmethod
    def of(cls, project: Project, *others: Path) -> Revision:
        """That of a project now. Left out is what releases write: metadata, results, and `others` (a channel, say); and
        what .gitignore names, but for the configuration."""
        done = _git(project.root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
        if done is None:
            return cls(None)
        where = _but(project, others)
        status = _git(project.root, "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all", *where)
        known = _git(project.root, "ls-files", "--error-unmatch", "--", f":(literal){project.config_file}")
        names = _names(status or "")
        commit = done.strip() if status is not None else None
        return cls(commit, names if known else (project.config_file.name, *names))


def same_files(project: Project, commit: str, *others: Path) -> bool:
    """Whether the checkout's files are those of a commit."""
    return _git(project.root, "diff", "--quiet", commit, *_but(project, others)) is not None


def tags(project: Project, commit: str) -> list[str]:
    """The tags of a commit."""
    return (_git(project.root, "tag", "--points-at", commit) or "").split()


def check(project: Project, built: Revision, *others: Path) -> None:
    """Raise CheckError unless Git tells everybody what an image was built from: `release-tree`, `release-tag`."""
    now = Revision.of(project, *others)
    again = "commit what is to be released, tag it, build it again (mixos build), then release it"
    if built.commit is None or now.commit is None:
        raise CheckError("the image was not built from a Git checkout", reason="release-tree", hint=again)
    for what, one in (("the image was built from files that are", built), ("these files are", now)):
        if one.changes:
            raise CheckError(f"{what} in no commit: {', '.join(one.changes)}", reason="release-tree", hint=again)
    if not same_files(project, built.commit, *others):
        message = f"the image was built from commit {built.commit[:12]}, and the checkout has other files"
        hint = f"check that commit out, or build again (mixos build): {again}"
        raise CheckError(message, reason="release-tree", hint=hint)
    version = project.config.image.version
    if not {version, f"v{version}"} & set(tags(project, built.commit)):
        raise CheckError(
            f"commit {built.commit[:12]}, which the image was built from, has no tag v{version}",
            reason="release-tag",
            hint=f"git tag v{version} {built.commit[:12]}, or give the image another version",
        )


def _but(project: Project, others: Sequence[Path]) -> list[str]:
    """Words for Git: the project without what releases write."""
    left_out = [project.keys / "tuf", project.keys / "pending", project.out, *others]
    inside = [path.absolute() for path in left_out if path.absolute().is_relative_to(project.root)]
    return ["--", ".", *(f":(exclude,literal){path.relative_to(project.root)}" for path in inside)]


def _names(status: str) -> tuple[str, ...]:
    names = [row[3:] for row in status.split("\0") if row]
    more = [f"and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return (*names[:_NAMED], *more)


def _git(root: Path, *words: str) -> str | None:
    """What git says; None when it is missing or fails. Nothing that a checkout configures is run."""
    argv = ["git", "-c", "core.fsmonitor=false", "-C", str(root), *words]
    try:
        done = run(argv, split=True, allow=ANY_STATUS, timeout=_SECONDS)
    except HostError:
        return None
    return done.stdout.decode("utf-8", "replace") if done.status == 0 else None

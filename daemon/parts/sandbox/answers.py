"""What the methods `sandbox.*` answer."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from daemon.core.answers import JsonObject


class ProfileFacts(TypedDict):
    """A profile, in short."""

    name: Annotated[str, "the profile's name"]
    description: Annotated[str, "what it is for, as its file says"]
    network: Annotated[Literal["none", "host", "proxy"], "which network there is inside"]
    user: Annotated[Literal["dynamic", "caller"] | int, "the account inside, an integer being a user id"]
    seccomp: Annotated[str, "the level of the filter of system calls"]
    origin: Annotated[list[str], "the files that it is made of, the outermost first"]
    broken: Annotated[str | None, "what is wrong with its file; the last good policy is in force then"]


class WholeProfile(ProfileFacts):
    """A profile."""

    policy: Annotated[JsonObject, "every key of a profile's file with its value, those with their default too"]


class Landlock(TypedDict):
    """The second wall around files."""

    abi: Annotated[int, "the version that the kernel has; 0 for none"]
    used: Annotated[int, "the version that is enforced; 0 for none"]


Facts = TypedDict(
    "Facts",
    {
        "keyring": Annotated[Literal["new", "none"], "its session keyring; none: this kernel has no keyrings"],
        "memory": Annotated[Literal["cgroup", "process", "none"], "what limits its memory"],
        "pids": Annotated[Literal["cgroup", "process", "none"], "what limits its processes"],
        "account": Annotated[int, "its user id, seen from outside"],
        "group": Annotated[int, "its group id, seen from outside"],
        "capabilities": Annotated[str, "all its sets of capabilities together, in hexadecimal"],
        "user-namespace": Annotated[bool, "it has a user namespace of its own"],
        "landlock": Annotated[Landlock, "the second wall around files"],
        "seccomp": Annotated[int, "prctl(2), PR_GET_SECCOMP: 2 with a filter"],
        "no-new-privs": Annotated[int, "prctl(2), PR_GET_NO_NEW_PRIVS: 1 when nothing inside gains rights"],
        "network": Annotated[Literal["none", "host", "proxy"], "which network there is inside"],
        "proc": Annotated[Literal["none", "pids", "full"], "how much of /proc there is inside"],
        "protected": Annotated[int, "paths that are hidden or protected, and there"],
        "placeholders": Annotated[int, "of those, the ones that did not exist and got a placeholder"],
        "absent": Annotated[list[str], "paths that are hidden or shown, and not there"],
        "missing": Annotated[list[str], "limits for which this host has no control group"],
    },
)

Kernel = TypedDict(
    "Kernel",
    {
        "release": Annotated[str, "its version"],
        "landlock": Annotated[int, "the version of Landlock; 0 for none"],
        "seccomp": Annotated[bool, "it has filters of system calls"],
        "user-namespaces": Annotated[bool, "the caller of the launcher may make user namespaces"],
        "keyrings": Annotated[bool, "it has keyrings"],
        "root": Annotated[bool, "the launcher runs as root"],
    },
)


class Promise(TypedDict):
    """One thing that a policy promises."""

    what: Annotated[str, "what is promised"]
    enforced: Annotated[Literal["yes", "partly", "no"], "whether it is kept"]
    how: Annotated[str, "by what, or why not"]


class Explanation(TypedDict):
    """What of a policy is enforced here."""

    kernel: Annotated[Kernel, "what the kernel has"]
    facts: Annotated[Facts, "what the launcher read back from a sandbox that it set up"]
    rows: Annotated[list[Promise], "what the policy promises"]


class Explained(ProfileFacts, Explanation):
    """What of a profile is enforced here."""


class Output(TypedDict):
    """What the command wrote."""

    stream: Annotated[Literal[1, 2], "1: standard output, 2: standard error"]
    data: Annotated[str, "the bytes, in base64"]


class Ended(TypedDict):
    """The last item."""

    code: Annotated[int, "the exit code; 128 + N for signal N, 124 when time was up"]
    timeout: Annotated[bool, "time was up"]
    facts: Annotated[Facts, "what was enforced"]


Item = Output | Ended

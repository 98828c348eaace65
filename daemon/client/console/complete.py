"""What a Tab means: words from the commands themselves (click knows them), and from the daemon (`names`)."""

from __future__ import annotations

from collections.abc import Sequence


class Completer:
    """Completes lines of the console. click is imported with the first Tab."""

    def __init__(self, own: Sequence[str]) -> None:
        self.own = own

    def __call__(self, before: str) -> tuple[int, Sequence[str]]:
        """Where the word before the cursor begins, and what it can become. Never fails: no help is no harm."""
        try:
            return self._find(before)
        except Exception:  # noqa: BLE001  # a defect in a command's completion must not end the session
            return len(before), []

    def _find(self, before: str) -> tuple[int, Sequence[str]]:
        from click.shell_completion import ShellComplete, split_arg_string

        from daemon.client.cli import cli
        from daemon.client.mixctl import COMPLETE

        words = split_arg_string(before)
        word = words.pop() if words and not before[-1].isspace() else ""
        if not before.endswith(word) or before.count("'") % 2 or before.count('"') % 2:
            return len(before), []  # within quotes: where the word begins is a guess
        words = words[1:] if words[:1] == ["mixctl"] else words
        first = not words
        while words and words[0] in ("help", "?", "watch"):
            words = words[1:]
        found = [
            item.value
            for item in ShellComplete(cli, {}, "mixctl", COMPLETE).get_completions(words, word)
            if item.type == "plain"
        ]
        if first:
            found += [name for name in self.own if name.startswith(word)]
        if word.startswith("--") and "=" in word:
            word = word.partition("=")[2]
        return len(before) - len(word), found

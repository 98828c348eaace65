"""Editing a line: the keys that people know from a shell, history, search, completion. In Python, for three reasons:
GNU readline obeys init files and variables that are the user's, needs terminfo, and is not in the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from daemon.client.console.terminal import CLEAR, Terminal, width_of

LONGEST = 8192  # characters of a line
_SHOWN = 200  # completions that are listed

# What comes before the cursor → where the word to complete begins, and what it can be.
Complete = Callable[[str], tuple[int, Sequence[str]]]


class Editor:
    """Reads lines from a terminal."""

    def __init__(self, terminal: Terminal, complete: Complete) -> None:
        self.terminal = terminal
        self.complete = complete
        self._prompt = self._text = self._killed = ""
        self._at = 0  # the cursor: an index of _text
        self._past: list[str] = []
        self._shown = 0  # the index of _past that is shown; its length: the line being written

    def read(self, prompt: str, past: Sequence[str] = (), seconds: float | None = None) -> str:
        """One line. past: earlier ones, oldest first. seconds: how long to wait for a key.

        Raises EOFError (Ctrl-D on an empty line, terminal gone), KeyboardInterrupt (Ctrl-C), TimeoutError.
        """
        self._prompt, self._text, self._at = prompt, "", 0
        self._past, self._shown = [*past, ""], len(past)
        with self.terminal.raw():
            self._draw()
            while True:
                key = self.terminal.key(seconds)
                if key is None:
                    raise TimeoutError
                if key == "enter":
                    self._end()
                    return self._text
                if key == "ctrl-c":
                    self._end("^C")
                    raise KeyboardInterrupt
                if key == "ctrl-d" and not self._text:
                    self._end()
                    raise EOFError
                self._act(key, seconds)
                if not self.terminal.pending:  # of pasted text only the end is shown
                    self._draw()

    def _act(self, key: str, seconds: float | None) -> None:
        if len(key) == 1:
            self._insert(key)
        elif key == "ctrl-r":
            self._search(seconds)
        elif action := _ACTIONS.get(key):
            action(self)

    # -- text --------------------------------------------------------------------------------------------------------

    def _insert(self, text: str) -> None:
        if len(self._text) + len(text) <= LONGEST:
            self._text = self._text[: self._at] + text + self._text[self._at :]
            self._at += len(text)

    def _cut(self, start: int, end: int, keep: bool = True) -> None:
        if keep and start < end:
            self._killed = self._text[start:end]
        self._text = self._text[:start] + self._text[end:]
        self._at = start

    def _word_before(self) -> int:
        before = self._text[: self._at].rstrip()
        return len(before) - len(before.rpartition(" ")[2])

    def _word_after(self) -> int:
        rest = self._text[self._at :]
        blanks = len(rest) - len(rest.lstrip())
        return self._at + blanks + len(rest.lstrip().partition(" ")[0])

    # -- history -----------------------------------------------------------------------------------------------------

    def _recall(self, step: int) -> None:
        if 0 <= self._shown + step < len(self._past):
            self._past[self._shown] = self._text
            self._shown += step
            self._text = self._past[self._shown]
            self._at = len(self._text)

    def _search(self, seconds: float | None) -> None:
        """Ctrl-R: the latest earlier line with the typed text in it; again: the one before; any other key takes it."""
        wanted, found, prompt = "", len(self._past), self._prompt
        while True:
            self._prompt = f"(search) {wanted}: "
            self._draw()
            key = self.terminal.key(seconds)
            if key == "ctrl-r" and wanted:
                found = self._find(wanted, found)
            elif key == "backspace":
                wanted, found = wanted[:-1], self._find(wanted[:-1], len(self._past))
            elif key is not None and len(key) == 1:
                wanted += key
                found = self._find(wanted, min(found + 1, len(self._past)))
            else:
                break
            if wanted and found < len(self._past):
                self._text = self._past[found]
                self._at = len(self._text)
        self._prompt = prompt

    def _find(self, wanted: str, before: int) -> int:
        """The index of the latest line before index `before` that contains `wanted`; `before` when there is none."""
        return next((index for index in range(before - 1, -1, -1) if wanted in self._past[index]), before)

    # -- completion --------------------------------------------------------------------------------------------------

    def _tab(self) -> None:
        start, found = self.complete(self._text[: self._at])
        found = [word for word in found if word and word.isprintable()]
        if not found:
            return
        word = self._text[start : self._at]
        first, last = min(found), max(found)
        common = next((first[:at] for at in range(len(first), 0, -1) if last.startswith(first[:at])), "")
        if len(found) == 1:
            common += "" if common.endswith(("=", "/")) else " "
        if len(common) > len(word):
            self._cut(start, self._at, keep=False)
            self._insert(common)
        elif len(found) > 1:
            self._list(found)

    def _list(self, words: Sequence[str]) -> None:
        shown = sorted(set(words))[:_SHOWN]
        width = max(len(word) for word in shown) + 2
        count = max(1, self.terminal.size()[0] // width)
        rows = -(-len(shown) // count)
        lines = ["".join(word.ljust(width) for word in shown[row::rows]).rstrip() for row in range(rows)]
        more = [f"... and {len(words) - _SHOWN} more"] if len(words) > _SHOWN else []
        self._end()
        self.terminal.write("".join(f"{line}\n" for line in lines + more))

    # -- screen ------------------------------------------------------------------------------------------------------

    def _draw(self) -> None:
        """Show the line; what does not fit is scrolled out to the left, so that nothing ever wraps."""
        room = max(8, self.terminal.size()[0] - width_of(self._prompt) - 1)
        start, end = self._at, self._at
        while start > 0 and width_of(self._text[start - 1 : self._at]) <= room:
            start -= 1
        while end < len(self._text) and width_of(self._text[start : end + 1]) <= room:
            end += 1
        left = width_of(self._prompt) + width_of(self._text[start : self._at])
        self.terminal.write(f"\r{self._prompt}{self._text[start:end]}\x1b[K\r\x1b[{left}C")

    def _end(self, mark: str = "") -> None:
        self._at = len(self._text)
        self._draw()
        self.terminal.write(f"{mark}\n")

    def _clear(self) -> None:
        self.terminal.write(CLEAR)


def _move(to: Callable[[Editor], int]) -> Callable[[Editor], None]:
    def act(editor: Editor) -> None:
        editor._at = min(max(to(editor), 0), len(editor._text))

    return act


_ACTIONS: Mapping[str, Callable[[Editor], None]] = {
    "left": (_left := _move(lambda editor: editor._at - 1)),
    "ctrl-b": _left,
    "right": (_right := _move(lambda editor: editor._at + 1)),
    "ctrl-f": _right,
    "home": (_home := _move(lambda _: 0)),
    "ctrl-a": _home,
    "end": (_to_end := _move(lambda editor: len(editor._text))),
    "ctrl-e": _to_end,
    "alt-b": _move(Editor._word_before),
    "alt-f": _move(Editor._word_after),
    "up": (_up := lambda editor: editor._recall(-1)),
    "ctrl-p": _up,
    "down": (_down := lambda editor: editor._recall(1)),
    "ctrl-n": _down,
    "backspace": lambda editor: editor._cut(max(editor._at - 1, 0), editor._at, keep=False),
    "delete": (_delete := lambda editor: editor._cut(editor._at, editor._at + 1, keep=False)),
    "ctrl-d": _delete,
    "ctrl-u": lambda editor: editor._cut(0, editor._at),
    "ctrl-k": lambda editor: editor._cut(editor._at, len(editor._text)),
    "ctrl-w": lambda editor: editor._cut(editor._word_before(), editor._at),
    "alt-d": lambda editor: editor._cut(editor._at, editor._word_after()),
    "ctrl-y": lambda editor: editor._insert(editor._killed),
    "ctrl-l": Editor._clear,
    "tab": Editor._tab,
}

"""One pool of CPU tokens for everything that runs: actions, and the `make` processes inside them.

GNU make's jobserver (the "POSIX Jobserver" section of its manual): a pipe holds one byte per free token. Every action
takes one token to run at all, which is the implicit token that its make owns; further children of that make take more.
So two builds side by side never start more processes than the machine has cores.
"""

from __future__ import annotations

import os
import select


class Jobserver:
    """`tokens` tokens in a pipe; the descriptors are handed to sandboxed actions."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.read_fd, self.write_fd = os.pipe()
        # Our own way to the same pipe: O_NONBLOCK belongs to the open file, which read_fd shares with every make.
        self._own_fd = os.open(f"/proc/self/fd/{self.read_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        os.write(self.write_fd, b"+" * tokens)

    @property
    def makeflags(self) -> str:
        """The MAKEFLAGS that make a `make` join this pool (the form that make 4.2 and newer understand)."""
        return f" -j{self.tokens} --jobserver-auth={self.read_fd},{self.write_fd}"

    def acquire(self, wake_fd: int, timeout: float) -> bool:
        """Take one token; False when `wake_fd` became readable or `timeout` seconds passed first."""
        ready, _, _ = select.select([self._own_fd, wake_fd], [], [], timeout)
        if self._own_fd not in ready or wake_fd in ready:
            return False
        return self.try_acquire()

    def try_acquire(self) -> bool:
        """Take one token if one is free right now; a make may have been faster."""
        try:
            return len(os.read(self._own_fd, 1)) == 1
        except BlockingIOError:
            return False

    def refill(self) -> None:
        """Bring the pool back to its full number of tokens; only while nothing uses it."""
        while self.try_acquire():
            pass
        os.write(self.write_fd, b"+" * self.tokens)

    def release(self) -> None:
        """Give one token back."""
        os.write(self.write_fd, b"+")

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._own_fd)
        os.close(self.read_fd)
        os.close(self.write_fd)

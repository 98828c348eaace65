"""TLS over a connection: the server's certificate is always verified."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import TypeVar

from daemon.parts.update.link import CHUNK, Layer, SourceError

T = TypeVar("T")


def context(authorities: str | None) -> ssl.SSLContext:
    """Verifies by these certificates (PEM), or by those in the system's usual place, /etc/ssl. Each of them is one to
    end with, whoever issued it. Raises SourceError `source-order`: these are none."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # certificate and name are verified
    made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_alpn_protocols(["http/1.1"])
    try:
        if authorities is None:
            made.set_default_verify_paths()
        else:
            made.load_verify_locations(cadata=authorities)
    except (ssl.SSLError, ValueError) as error:
        raise SourceError("the certificates that are to be trusted are none", "source-order", passing=False) from error
    return made


class Tls:
    """A layer over another one."""

    def __init__(self, under: Layer, made: ssl.SSLContext, name: str, until: float) -> None:
        """Agree with the server. Raises OSError; SourceError `source-tls`."""
        self._under = under
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = made.wrap_bio(self._in, self._out, server_hostname=name)
        self._do(self._object.do_handshake, until)

    def _do(self, call: Callable[[], T], until: float) -> T:
        while True:
            try:
                result = call()
            except ssl.SSLWantReadError:
                self._flush(until)
                if data := self._under.receive(CHUNK, until):
                    self._in.write(data)
                else:
                    self._in.write_eof()
            except ssl.SSLCertVerificationError as error:
                why = error.verify_message.rstrip(".")
                raise SourceError(
                    f"the server's certificate: {why}", "source-tls", passing=False, retryable=True
                ) from error
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                raise
            except ssl.SSLError as error:
                raise SourceError(f"TLS: {error.reason}", "source-tls") from error
            else:
                self._flush(until)
                return result

    def _flush(self, until: float) -> None:
        if data := self._out.read():
            self._under.send(data, until)

    def send(self, data: bytes, until: float) -> None:
        """See Layer."""
        self._do(lambda: self._object.write(data), until)

    def receive(self, most: int, until: float) -> bytes:
        """See Layer. An end without a word of TLS is an end, too: what is too short by HTTP is noticed there."""
        try:
            return self._do(lambda: self._object.read(most), until)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def idle(self) -> bool:
        """See Layer. What TLS itself has to say (tickets) is not an answer."""
        try:
            while not self._under.idle():
                data = self._under.receive(CHUNK, time.monotonic())
                if not data or self._in.pending > CHUNK:
                    return False
                self._in.write(data)
            self._object.read(1)
        except ssl.SSLWantReadError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        """See Layer."""
        self._under.close()

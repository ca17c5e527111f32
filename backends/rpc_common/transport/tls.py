"""TLS between a socket and a connection, over memory: it never waits and never does I/O."""

import ssl as ssl_module
from contextlib import suppress

__all__ = ["Tls"]

_READ_SIZE = 256 * 1024


class Tls:
    """One end of a TLS connection. Errors of the peer raise ssl.SSLError."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_said_goodbye", "_unsent", "established")

    def __init__(
        self, context: ssl_module.SSLContext, *, server_side: bool, hostname: str | None = None
    ) -> None:
        self._incoming = ssl_module.MemoryBIO()
        self._outgoing = ssl_module.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=hostname
        )
        self._unsent = bytearray()  # what came to be sent before the handshake was over
        self.established = False
        self._said_goodbye = False
        if not server_side:
            self._shake_hands()

    def decrypt(self, data: bytes | memoryview) -> bytes:
        """Take bytes from the socket; return what they say, which may be nothing yet.

        After `goodbye` they are thrown away: what the peer still sends is no error.
        """
        if self._said_goodbye:
            return b""
        self._incoming.write(data)
        if not self.established and not self._shake_hands():
            return b""
        parts = []
        try:
            while part := self._object.read(_READ_SIZE):
                parts.append(part)
        except ssl_module.SSLWantReadError:
            pass
        except ssl_module.SSLZeroReturnError:
            pass  # the peer's goodbye; the end of the socket's bytes follows
        return b"".join(parts)

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Take bytes to be sent and return what goes to the socket; nothing in the handshake."""
        if not self.established:
            self._unsent += data
        elif data:
            self._object.write(data)
        return self.pending()

    def pending(self) -> bytes:
        """Return what TLS itself has to send."""
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """Return what tells the peer that nothing more comes."""
        if self.established:
            self._said_goodbye = True
            with suppress(ssl_module.SSLError):  # it does not wait for the peer's
                self._object.unwrap()
        return self.pending()

    @property
    def certificate(self) -> object:
        """The peer's verified certificate, as SSLSocket.getpeercert gives it."""
        return self._object.getpeercert()

    def _shake_hands(self) -> bool:
        try:
            self._object.do_handshake()
        except ssl_module.SSLWantReadError:
            return False
        self.established = True
        if self._unsent:
            self._object.write(self._unsent)
            self._unsent.clear()
        return True

"""TLS between a socket and a connection, over memory: it never blocks and does no I/O."""

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
        self._unsent = bytearray()  # data to send once the handshake is over
        self.established = False
        self._said_goodbye = False
        if not server_side:
            self._shake_hands()

    def decrypt(self, data: bytes | memoryview) -> bytes:
        """Take bytes from the socket; return the decrypted bytes, possibly none yet.

        After `goodbye` they are discarded: more data from the peer is not an error.
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
            pass  # the peer's close_notify; EOF of the socket follows
        return b"".join(parts)

    def encrypt(self, data: bytes | memoryview) -> bytes:
        """Take bytes to send and return what to write to the socket; none during the handshake."""
        if not self.established:
            self._unsent += data
        elif data:
            self._object.write(data)
        return self.pending()

    def pending(self) -> bytes:
        """Return TLS's own pending bytes."""
        return self._outgoing.read()

    def goodbye(self) -> bytes:
        """Return the close_notify for the peer."""
        if self.established:
            self._said_goodbye = True
            with suppress(ssl_module.SSLError):  # without waiting for the peer's
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

"""A blocking socket, with or without TLS, and the output of a connection.

A writer holds the lock of the connection but never blocks there: bytes that the kernel does not
take stay in `unsent`, for a thread that can wait.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from select import POLLIN, POLLOUT, poll
from struct import pack
from time import monotonic
from typing import Any, TypeGuard

from rpc_common.transport.memory import keep_large_blocks
from rpc_common.transport.tls import Tls
from rpc_proto import Wish
from rpc_proto.connection.base import Connection

__all__ = ["EARLY", "LONGEST", "Channel", "is_of_socket"]

# Each connection has a buffer of its own, since its thread waits there.
_SMALL_READ_SIZE = 16 * 1024
_LARGE_READ_SIZE = 512 * 1024

_AT_ONCE = (socket.MSG_DONTWAIT,)

# So many bytes are worth a system call of their own: the peer can work on them in parallel.
EARLY = 1024

# The kernel's timeouts are milliseconds in 31 bits, and a deadline may be a year away.
LONGEST = 3600.0


def is_of_socket(error: BaseException) -> TypeGuard[OSError]:
    """Whether the error is from the kernel, and not, say, a TimeoutError of a signal handler."""
    return isinstance(error, OSError) and error.errno is not None


# Large buffers are rarely needed and expensive, and a peer can cause one by a large body. So there
# is a limited number; these are not in use, and None is one that was never created.
_MOST_LARGE = 8
_large_buffers: list[memoryview | None] = [None] * _MOST_LARGE


class Channel:
    """Reads for a connection, and writes its output. All but `receive` need its lock."""

    __slots__ = (
        "_buffer",
        "_finished",
        "_small_buffer",
        "connection",
        "failure",
        "limit",
        "sock",
        "tls",
        "unsent",
    )

    def __init__(self, sock: socket.socket, tls: Tls | None) -> None:
        self.sock = sock
        self.tls = tls
        self.connection: Connection
        self.unsent: memoryview | bytes = b""
        # Of a write, and the next read tells the connection; or of TLS.
        self.failure: OSError | None = None
        self.limit = 0  # bytes that a read may take; 0 for as many as the buffer does
        self._finished = False  # this end sends nothing more
        # Pages that are never touched cost nothing, and most messages fit into the first one.
        self._buffer = self._small_buffer = memoryview(mmap(-1, _SMALL_READ_SIZE))

    def receive(self, flags: int = 0) -> memoryview | bytes | None:
        """Wait for bytes; b"" at EOF, None after the limit of patience, OSError if lost.

        With the flag MSG_DONTWAIT it does not wait.
        """
        try:
            count = self.sock.recv_into(self._buffer, self.limit, flags)
        except BlockingIOError:
            return None
        return self._buffer[:count]

    def limit_patience(self, seconds: float) -> None:
        """Let `receive` wait for at most about so many seconds."""
        timeval = pack("@ll", int(seconds), int(seconds % 1 * 1e6))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)

    def wait(self, timeout: float | None, what: int, bell: socket.socket | None = None) -> bool:
        """Wait for POLLIN, POLLOUT or both, until the bell rings or the time is over.

        Returns whether there is something to receive, including EOF.
        """
        poller = poll()
        try:
            poller.register(self.sock, what)
            if bell is not None:
                poller.register(bell, POLLIN)
        except ValueError:  # it was closed meanwhile
            return False
        for fd, ready in poller.poll(None if timeout is None else max(0.0, timeout) * 1000):
            if fd == self.sock.fileno():
                return ready & ~POLLOUT != 0
        return False

    def take(self, data: memoryview | bytes) -> None:
        """Pass what `receive` returned to the connection."""
        connection = self.connection
        now = monotonic()
        if not data:
            connection.receive_eof(now)
            return
        if self.tls is not None:
            try:
                data = self.tls.decrypt(data)
            except OSError as error:
                self.failure = self.failure or error
                self.lose(error)
                return
        connection.receive_data(now, data)
        if (connection.missing > _SMALL_READ_SIZE) is (self._buffer is self._small_buffer):
            self._change_buffer()

    def pace(self, size: int) -> None:
        """Read no more than that at a time until the next large body arrives."""
        if self._buffer is self._small_buffer:
            self.limit = min(size, _SMALL_READ_SIZE)

    def _change_buffer(self) -> None:
        """Borrow a large buffer, if one is free, while a large body arrives."""
        if self._buffer is self._small_buffer:
            try:
                buffer = _large_buffers.pop()
            except IndexError:
                return
            if buffer is None:
                keep_large_blocks()
                buffer = memoryview(bytearray(_LARGE_READ_SIZE))
            self._buffer = buffer
        else:
            _large_buffers.append(self._buffer)
            self._buffer = self._small_buffer
        self.limit = 0

    def close(self) -> None:
        """Close the socket."""
        if self._buffer is not self._small_buffer:
            _large_buffers.append(None)  # not this one: a thread may still look at what it read
            self._buffer = self._small_buffer
        self.sock.close()

    def lose(self, error: OSError | None) -> None:
        """Tell the connection that the transport is lost."""
        reason = f"the connection was lost: {error}" if error else "the connection was closed"
        self.connection.connection_lost(monotonic(), reason)

    def send(self, lock: Any = None, regain: Callable[[], None] | None = None) -> None:
        """Write as much as the kernel takes.

        With a lock, release it for each write and call `regain` after it: other threads leave their
        output to this one.
        """
        connection = self.connection
        data: memoryview | bytes = b""
        sent: list[int] = []  # how much of `data` has left
        try:
            while True:
                sent.clear()
                data = self.unsent
                if not data:
                    if connection.outbound:
                        data = connection.next_buffer()
                        if self.tls is not None:
                            data = self.tls.encrypt(data)
                    elif self.tls is not None:
                        data = self.tls.pending()
                    if not data:
                        return
                    self.unsent = data
                try:
                    if lock is not None:
                        lock.release()
                    # In one step, because a signal handler may raise after every call from here.
                    sent.extend(map(self.sock.send, (data,), _AT_ONCE))
                    self._left(data, sent[0])
                finally:
                    if regain is not None:
                        regain()
                connection.unsent = len(self.unsent)  # with the lock: there may be more to send
        except BlockingIOError:
            connection.unsent = len(self.unsent)
            return
        except BaseException as error:
            if is_of_socket(error):
                self._break(error)
                return
            if sent and self.unsent is data:
                self._left(data, sent[0])
            raise

    def _left(self, data: memoryview | bytes, count: int) -> None:
        """Keep what the kernel did not take."""
        self.unsent = memoryview(data)[count:] if count < len(data) else b""

    def _break(self, error: OSError) -> None:
        self.unsent = b""
        if self.failure is None:
            self.failure = error
            self.shut(socket.SHUT_RDWR)  # wakes whoever reads

    def follow(self, wish: Wish) -> bool:
        """Do what the ending connection wishes; return whether to close the socket."""
        if wish is Wish.ABORT:
            self.shut(socket.SHUT_RDWR)  # wakes whoever reads
            return True
        if self.unsent or wish is Wish.READ or wish is Wish.PAUSE:
            return False
        if not self._finished:
            self._finished = True
            if self.tls is not None:
                self.unsent = self.tls.goodbye()
                self.send()
            self.shut(socket.SHUT_WR)
        if wish is Wish.CLOSE:
            self.shut(socket.SHUT_RDWR)
        return wish is Wish.CLOSE

    def shut(self, how: int) -> None:
        """Shut the socket in one direction or both."""
        with suppress(OSError):  # the peer was quicker
            self.sock.shutdown(how)

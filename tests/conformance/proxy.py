"""A proxy that does to a connection what networks do: cut, delay, swallow, reset, end."""

import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator

from rpc_proto import parse_address

_READ = 65536
# No read and no write of the proxy takes longer, in seconds; it ends with its test anyway.
_LONGEST = 60.0
# A stalled direction takes no more than about twice this, in bytes, besides what the sender's
# kernel buffers. Without it the kernel may grow the receive buffer to tens of MiB.
_RECEIVE_BUFFER = 1 << 20

TO_SERVER = 0
TO_CLIENT = 1


def _end(peer: socket.socket) -> None:
    # Not close(): a thread may be reading from it, and has to be woken first.
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Forwards connections to an address; the test tells what goes wrong on the way.

    `seed`: cut what passes into pieces whose sizes follow from it, at most `largest` bytes each.
    """

    def __init__(self, address: str, *, seed: int | None = None, largest: int = 1) -> None:
        self._target = parse_address(address)
        self._seed = seed
        self._largest = largest
        self._open = (threading.Event(), threading.Event())
        for direction in self._open:
            direction.set()
        self._swallow = threading.Event()
        self._resetting = threading.Event()
        self.passed = [0, 0]
        self._sockets: list[socket.socket] = []
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._forwarding: list[threading.Thread] = []
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Those that it accepts inherit it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        scheme = "tcp" if self._target.scheme == "unix" else self._target.scheme
        self.address = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    # What goes wrong

    def stall(self, direction: int) -> None:
        """Let nothing pass in a direction until `resume`."""
        self._open[direction].clear()

    def resume(self, direction: int) -> None:
        self._open[direction].set()

    def swallow(self) -> None:
        """Take what comes from now on and pass none of it on."""
        self._swallow.set()

    def reset(self) -> None:
        """Reset all connections, on both sides."""
        self._resetting.set()
        for pair in self._pairs:
            for peer in pair:
                with contextlib.suppress(OSError):  # it ended by itself
                    peer.shutdown(socket.SHUT_RD)  # the threads go, and no peer hears of it
        for thread in self._forwarding:
            thread.join(_LONGEST)
        for pair in self._pairs:
            for peer in pair:
                # To close without delay is a reset.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()

    def half_close(self) -> None:
        """Tell the clients that the server sends no more."""
        for client, _ in self._pairs:
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._closed = True
        for direction in self._open:
            direction.set()
        _end(self._listener)
        for peer in list(self._sockets):
            _end(peer)
        for thread in (self._accepting, *self._forwarding):
            thread.join(_LONGEST)
        self._listener.close()
        for peer in self._sockets:
            peer.close()

    # Forwarding

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._closed:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                server = self._dial()
                self._sockets.append(server)
                self._pairs.append((client, server))
                for peer in (client, server):
                    peer.settimeout(_LONGEST)
                    if peer.family != socket.AF_UNIX:
                        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for way in ((client, server, TO_SERVER), (server, client, TO_CLIENT)):
                    thread = threading.Thread(target=self._forward, args=way, daemon=True)
                    self._forwarding.append(thread)
                    thread.start()

    def _dial(self) -> socket.socket:
        if self._target.scheme == "unix":
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._target.path)
            return server
        return socket.create_connection((self._target.host, self._target.port), _LONGEST)

    def _forward(self, source: socket.socket, target: socket.socket, direction: int) -> None:
        try:
            while data := source.recv(_READ):
                for piece in self._cut(data, direction):
                    self._open[direction].wait(_LONGEST)
                    if not self._swallow.is_set():
                        target.sendall(piece)
                        self.passed[direction] += len(piece)
            if not self._resetting.is_set():
                target.shutdown(socket.SHUT_WR)
        except OSError:
            if not self._resetting.is_set():
                _end(source)
                _end(target)

    def _cut(self, data: bytes, direction: int) -> Iterator[bytes]:
        if self._seed is None:
            yield data
            return
        sizes = random.Random(self._seed + direction)
        position = 0
        while position < len(data):
            size = sizes.randint(1, self._largest)
            yield data[position : position + size]
            position += size


@contextlib.contextmanager
def proxied(address: str, *, seed: int | None = None, largest: int = 1) -> Iterator[Proxy]:
    """Give a proxy in front of an address."""
    proxy = Proxy(address, seed=seed, largest=largest)
    try:
        yield proxy
    finally:
        proxy.close()


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Give the address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"

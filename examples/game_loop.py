"""A client in a game loop: nothing ever waits, and each frame gives the connection a moment.

python examples/game_loop.py 127.0.0.1 7000
"""

import socket
import sys
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from rpc_proto import CallCompleted, CallFailed, ClientConnection, Wish

FRAME = 1 / 60  # seconds


# [game]
class Network:
    """A connection that is looked after once in each frame."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._connection = ClientConnection(now=monotonic())
        self._unsent = b""

    def call(self, done: Callable[[Any], None], method: str, *args: Any) -> None:
        """Start a call; `done` gets its result or its error in a later frame."""
        now = monotonic()
        self._connection.start_call(now, method, args, deadline=now + 2.0, waiter=done)

    def update(self) -> bool:
        """Do what there is to do, without waiting; whether the connection goes on."""
        connection, now = self._connection, monotonic()
        at = connection.next_timeout()
        if at is not None and at <= now:
            connection.handle_timeout(now)
        try:
            self._unsent += connection.data_to_send()
            self._unsent = self._unsent[self._sock.send(self._unsent) :] if self._unsent else b""
            if connection.wish is not Wish.PAUSE:
                data = self._sock.recv(65536)
                connection.receive_data(now, data) if data else connection.receive_eof(now)
        except BlockingIOError:
            pass  # nothing has come, or the kernel takes no more: there is always another frame
        except OSError as error:
            connection.connection_lost(now, str(error))
        for event in connection.events():
            if isinstance(event, CallCompleted):
                event.call.waiter(event.value)
            elif isinstance(event, CallFailed):
                event.call.waiter(event.error)
        return connection.wish not in (Wish.CLOSE, Wish.ABORT)


# [game]


def main() -> None:
    scores: list[Any] = []
    frames = 0
    with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
        network = Network(sock)
        network.call(scores.append, "Arith.add", 1, 2)
        while not scores and network.update():
            frames += 1  # here the game draws
            sleep(FRAME)
    print(f"{scores[0]} after {frames} frames")


if __name__ == "__main__":
    main()

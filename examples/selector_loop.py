"""The whole loop that the core needs, on a plain selector: the same for a server and for a client.

python examples/selector_loop.py                      listens, prints its address, serves one client
python examples/selector_loop.py 127.0.0.1 7000       calls Arith.add there
"""

import selectors
import socket
import sys
from collections.abc import Callable
from time import monotonic
from typing import Any

from rpc_proto import (
    CallCompleted,
    CallFailed,
    ClientConnection,
    Dispatcher,
    Event,
    ServerPort,
    Wish,
)


# [loop]
def drive(sock: socket.socket, connection: Any, act: Callable[[list[Event]], None]) -> None:
    """Drive a client's or a server's end until it has ended; `act` gets what happens."""
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    while True:
        try:
            act(connection.events())
            if data := connection.data_to_send():
                sock.sendall(data)
            if connection.wish in (Wish.CLOSE, Wish.ABORT):
                return
            if connection.wish is Wish.HALF_CLOSE:
                sock.shutdown(socket.SHUT_WR)
            wake_at = connection.next_timeout()
            patience = None if wake_at is None else max(0.0, wake_at - monotonic())
            if not selector.select(patience):
                connection.handle_timeout(monotonic())
            elif data := sock.recv(65536):
                connection.receive_data(monotonic(), data)
            else:
                connection.receive_eof(monotonic())
        except OSError as error:
            connection.connection_lost(monotonic(), str(error))


# [loop]


# [server]
class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b


def serve(sock: socket.socket) -> None:
    dispatcher = Dispatcher(clock=monotonic)
    dispatcher.register(Arith())
    drive(sock, ServerPort(now=monotonic()), dispatcher.serve)


# [server]


# [client]
def call(sock: socket.socket, method: str, *args: Any) -> Any:
    connection = ClientConnection(now=monotonic())
    connection.start_call(monotonic(), method, args, deadline=monotonic() + 10.0)
    results: list[Any] = []

    def act(events: list[Event]) -> None:
        for event in events:
            if isinstance(event, (CallCompleted, CallFailed)):
                results.append(event.value if isinstance(event, CallCompleted) else event.error)
                connection.shutdown(monotonic())

    drive(sock, connection, act)
    return results[0]


# [client]


def main() -> None:
    if len(sys.argv) > 2:
        with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
            print(call(sock, "Arith.add", 1, 2))
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"tcp://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        sock, _ = listener.accept()
        with sock:
            serve(sock)


if __name__ == "__main__":
    main()

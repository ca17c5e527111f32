"""A server on a plain selector: the whole loop that the core needs, over one connection.

python examples/selector_server.py          listens, prints its address, serves one client
"""

import selectors
import socket
from time import monotonic

from rpc_proto import Dispatcher, ServerConnection, Wish


class Arith:
    def add(self, a: int, b: int) -> int:
        return a + b


# [loop]
def serve(sock: socket.socket, dispatcher: Dispatcher) -> None:
    connection = ServerConnection(now=monotonic())
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    while connection.wish not in (Wish.CLOSE, Wish.ABORT):
        try:
            if connection.wish is Wish.HALF_CLOSE:
                sock.shutdown(socket.SHUT_WR)
            wake_at = connection.next_timeout()
            if not selector.select(None if wake_at is None else max(0.0, wake_at - monotonic())):
                connection.handle_timeout(monotonic())
            elif data := sock.recv(65536):
                connection.receive_data(monotonic(), data)
            else:
                connection.receive_eof(monotonic())
            dispatcher.serve(connection.events())
            sock.sendall(connection.data_to_send())
        except OSError as error:
            connection.connection_lost(monotonic(), str(error))


# [loop]


def main() -> None:
    dispatcher = Dispatcher(clock=monotonic)
    dispatcher.register(Arith())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"tcp://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        sock, _ = listener.accept()
        with sock:
            serve(sock, dispatcher)


if __name__ == "__main__":
    main()

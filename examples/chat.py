"""A chat room (rpc_gevent): what one says, all others read.

python chat.py serve                                   prints an address
python chat.py join tcp://127.0.0.1:7000 alice         lines of standard input are said
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import gevent
from gevent.queue import Queue

from rpc_gevent import Client, Server


@dataclass
class Said:
    who: str
    text: str


class Chat:
    def __init__(self) -> None:
        self._ears: set[Queue] = set()

    def join(self, name: str, said: Iterable[str]) -> Iterator[Said]:
        """Say what comes, and give what the others say, until this one says no more."""
        ear = Queue(100)
        self._ears.add(ear)
        mouth = gevent.spawn(self._repeat, name, said, ear)
        try:
            yield Said("room", f"{len(self._ears) - 1} others are here")
            yield from iter(ear.get, None)
        finally:
            mouth.kill()
            self._ears.discard(ear)
            self._tell(ear, Said(name, "(left)"))

    def _repeat(self, name: str, said: Iterable[str], ear: Queue) -> None:
        self._tell(ear, Said(name, "(joined)"))
        for text in said:
            self._tell(ear, Said(name, text))
        ear.put(None)

    def _tell(self, own: Queue, what: Said) -> None:
        for ear in self._ears - {own}:
            if ear.full():  # of one who does not read: forget the oldest
                ear.get()
            ear.put(what)


def lines() -> Iterator[str]:
    """Read standard input without stopping the others."""
    while line := gevent.get_hub().threadpool.apply(sys.stdin.readline):
        yield line.rstrip("\n")


def join(address: str, name: str) -> None:
    with Client.connect(address) as client:
        for heard in client.stream("Chat.join", name, lines(), returns=Said):
            print(f"{heard.who}: {heard.text}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    if sys.argv[1] == "serve":
        server = Server()
        server.register(Chat())
        server.run(sys.argv[2] if len(sys.argv) > 2 else "tcp://127.0.0.1:0")
    else:
        join(*sys.argv[2:4])

"""Follow a log file of a server, as `tail -f` does (rpc_asyncio).

python log_tail.py serve /var/log                       prints an address
python log_tail.py follow tcp://127.0.0.1:7000 syslog   until Ctrl-C
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rpc_asyncio import Client, Server
from rpc_proto import InvalidArgument, NotFound


@dataclass
class Line:
    number: int
    text: str


class Logs:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def tail(self, name: str, start: int = 1) -> AsyncIterator[Line]:
        """Give the lines of a file from one on, and those that are added later."""
        if Path(name).name != name:
            raise InvalidArgument(f"{name!r} is not the name of a file")
        try:
            file = (self._folder / name).open(errors="replace")
        except OSError as error:
            raise NotFound(f"{name}: {error.strerror}") from None
        number = 0
        line = ""
        with file:  # closed when nobody follows any more
            while True:
                line += file.readline()
                if not line.endswith("\n"):  # the rest of it has not been written yet
                    await asyncio.sleep(0.1)
                    continue
                number += 1
                if number >= start:
                    yield Line(number, line.rstrip("\n"))
                line = ""


async def follow(address: str, name: str) -> None:
    async with Client.connect(address) as client:
        async for line in client.stream("Logs.tail", name, returns=Line):
            print(f"{line.number:6} {line.text}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1] == "serve":
        server = Server()
        server.register(Logs(Path(sys.argv[2])))
        server.run(sys.argv[3] if len(sys.argv) > 3 else "tcp://127.0.0.1:0")
    else:
        with suppress(KeyboardInterrupt):
            asyncio.run(follow(*sys.argv[2:4]))

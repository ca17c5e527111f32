"""Send a file to a server, with its progress and a checksum (rpc_blocking: plain threads).

python upload.py serve /tmp/received              prints an address
python upload.py send tcp://127.0.0.1:7000 a.iso
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rpc_blocking import Client, Server
from rpc_proto import InvalidArgument

CHUNK = 64 * 1024


@dataclass
class Received:
    size: int
    sha256: str


class Files:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, chunks: Iterable[bytes]) -> Received:
        """Store a file; nothing stays of one that does not arrive whole."""
        if Path(name).name != name:
            raise InvalidArgument(f"{name!r} is not the name of a file")
        digest = hashlib.sha256()
        size = 0
        partial = self._folder / f".{name}.partial"
        try:
            with partial.open("wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            partial.rename(self._folder / name)
        finally:
            partial.unlink(missing_ok=True)
        return Received(size, digest.hexdigest())


def read_with_progress(path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    sent = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            sent += len(chunk)
            print(f"\r{100 * sent // size:3} %", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def send(address: str, path: Path) -> None:
    with Client.connect(address) as client:
        chunks = read_with_progress(path)
        print(client.call("Files.put", path.name, chunks, timeout=3600.0, returns=Received))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    if sys.argv[1] == "serve":
        server = Server()
        server.register(Files(Path(sys.argv[2])))
        server.run(sys.argv[3] if len(sys.argv) > 3 else "tcp://127.0.0.1:0")
    else:
        send(sys.argv[2], Path(sys.argv[3]))

"""What conformance and fuzzing ask servers for; and servers with a bug, for `serve` to import."""

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

from rpc_proto.connection.base import Connection
from rpc_proto.wire.frames import FrameType

_bug = os.environ.get("PLANTED_BUG")


class Echo:
    def echo(self, value: Any) -> Any:
        if _bug == "misdelivers" and value == "value 7":
            return "value 8"
        return value

    def each(self, items: Iterator[Any]) -> Iterator[Any]:
        yield from items


class AsyncEcho:
    def echo(self, value: Any) -> Any:
        return value

    async def each(self, items: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for item in items:
            yield item


if _bug == "pong":
    _send = Connection._send

    def _send_wrongly(self: Any, kind: Any, flags: Any, call_id: Any, *rest: Any) -> Any:
        if kind == FrameType.PONG and call_id > 5:
            call_id = 5
        return _send(self, kind, flags, call_id, *rest)

    setattr(Connection, "_send", _send_wrongly)  # noqa: B010

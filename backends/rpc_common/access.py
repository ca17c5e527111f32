"""The access log: one line for each call and HTTP request that has ended.

Its logger is `<package>.access`.
"""

from logging import INFO
from typing import Any

from rpc_proto import CallError, InboundCall, RequestReceived, ServerConfig, ServerConnection
from rpc_proto.frames import Frame

from .log import Log

__all__ = ["LoggedConnection", "log_access"]

_LONGEST = 200  # characters of what a peer says


def log_access(log: Log, peer: str, what: str, outcome: str, seconds: float, size: int) -> None:
    """Log what a peer asked for, what came of it, how long it took, and the bytes of the answer."""
    if log.isEnabledFor(INFO):
        log.info(
            "%s %s %s %.3f ms %d bytes", peer, _word(what), _word(outcome), seconds * 1000, size
        )


def _word(text: str) -> str:
    """Return a text as one word, or in quotes and escaped: nobody may forge a line or a part."""
    text = text[:_LONGEST]
    return text if text.isprintable() and text and not set(text) & set(" '\"") else repr(text)


class LoggedConnection(ServerConnection):
    """A server's connection with an access log, in place of a plain one, which pays nothing."""

    __slots__ = ("_access", "_arrived")

    def __init__(
        self, access: Log, config: ServerConfig | None, *, now: float, **options: Any
    ) -> None:
        super().__init__(config, now=now, **options)
        self._access = access
        self._arrived: dict[InboundCall, float] = {}  # calls that have no line yet

    def send_response(self, now: float, call: InboundCall, value: Any) -> None:
        before = self.outbound
        super().send_response(now, call, value)
        if call in self._arrived:  # otherwise it ended before, or the result could not be sent
            self._log_end(call, "ok", self.outbound - before)

    def _receive_frame(self, frame: Frame, now: float) -> None:
        super()._receive_frame(frame, now)
        event = self._events[-1] if self._events else None
        if type(event) is RequestReceived:
            self._arrived.setdefault(event.call, now)

    def _answer_error(self, call: InboundCall, error: CallError) -> None:
        before = self.outbound
        super()._answer_error(call, error)
        self._log_end(call, str(error.code), self.outbound - before)

    def _end_call(self, call: InboundCall, error: CallError) -> None:
        super()._end_call(call, error)
        if call in self._arrived:  # otherwise it was answered with the same error
            self._log_end(call, str(error.code), 0)

    def _log_end(self, call: InboundCall, code: str, size: int) -> None:
        seconds = self._now - self._arrived.pop(call, self._now)
        log_access(self._access, self.peer.address, call.method, code, seconds, size)

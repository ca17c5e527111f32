"""The access log: one line for each finished call and HTTP request.

Its logger is `<package>.access`.
"""

from logging import INFO
from typing import Any

from rpc_proto import CallError, HttpServed, Observer, Peer

from .log import Log

__all__ = ["AccessLog"]

_LONGEST = 200  # characters of what a peer says


class AccessLog(Observer):
    """Logs the peer, the request, the outcome, the time, and the bytes of the answer."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def answered(self, now: float, call: Any, size: int) -> None:
        self._ended(now, call, "ok", size)

    def failed(self, now: float, call: Any, error: CallError, size: int) -> None:
        self._ended(now, call, str(error.code), size)

    def served(self, now: float, peer: Peer, exchange: HttpServed) -> None:
        self._line(peer, exchange.request, str(exchange.status), exchange.seconds, exchange.size)

    def _ended(self, now: float, call: Any, outcome: str, size: int) -> None:
        sending, receiving = call.sending, call.receiving
        items = ""
        if sending is not None or receiving is not None:
            sent = sending.count if sending is not None else 0
            size += sending.size if sending is not None else 0
            taken = receiving.count if receiving is not None else 0
            items = f" {sent} items sent {taken} received"
        peer = call.connection.peer
        self._line(peer, call.method, outcome, now - call.arrived, size, items)

    def _line(
        self, peer: Peer, what: str, outcome: str, seconds: float, size: int, items: str = ""
    ) -> None:
        if self._log.isEnabledFor(INFO):
            self._log.info(
                "%s %s %s %.3f ms %d bytes%s",
                *(peer.address, _word(what), _word(outcome), seconds * 1000, size, items),
            )


def _word(text: str) -> str:
    """Return a text as one word, or quoted and escaped, so that no field can be forged."""
    text = text[:_LONGEST]
    return text if text.isprintable() and text and not set(text) & set(" '\"") else repr(text)

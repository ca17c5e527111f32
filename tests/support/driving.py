"""What tests ask of the core without an end of a connection behind it."""

from types import SimpleNamespace
from typing import Any

from rpc_proto import Event, InboundCall, Peer
from rpc_proto.service.context import Job


def caused(method: Any, *arguments: Any, **options: Any) -> list[Event]:
    """Return the events that an input or a command of a connection causes, and no earlier ones."""
    connection = method.__self__
    connection.events()
    method(*arguments, **options)
    events: list[Event] = connection.events()
    return events


def make_job(
    deadline: float | None = None, metadata: dict[str, str] | None = None, clock: Any = None
) -> Job:
    """A call that a handler serves, of nobody."""
    connection = SimpleNamespace(peer=Peer("nobody"))
    call = InboundCall(connection, 1, "S.m", deadline, metadata or {}, 0, b"", 0.0)
    return Job(call, SimpleNamespace(name="S.m", lane=None), (), {}, clock or (lambda: 100.0), None)

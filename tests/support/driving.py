"""What tests ask of a connection of the core."""

from typing import Any

from rpc_proto import Event


def caused(method: Any, *arguments: Any, **options: Any) -> list[Event]:
    """Return the events that an input or a command of a connection causes, and no earlier ones."""
    connection = method.__self__
    connection.events()
    method(*arguments, **options)
    events: list[Event] = connection.events()
    return events

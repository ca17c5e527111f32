"""Events as a person sees them."""

from rpc_proto import (
    CallCompleted,
    ConnectionTerminated,
    Event,
    GoAwayReceived,
    OutboundCall,
    Unavailable,
)


def test_event_shows_its_fields() -> None:
    call = OutboundCall(7, 7, "S.m", None, None, None, 0, b"", None)
    event = CallCompleted(call, 5, {})
    assert repr(event) == "CallCompleted(call=<OutboundCall 7 S.m>, metadata={}, value=5)"
    assert repr(GoAwayReceived("unavailable", "bye")) == (
        "GoAwayReceived(code='unavailable', message='bye')"
    )


def test_events_share_a_base() -> None:
    assert isinstance(ConnectionTerminated(Unavailable()), Event)

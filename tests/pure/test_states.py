"""The transitions as data."""

from rpc_proto.connection.states import TRANSITIONS, State, Trigger, mermaid


def test_nothing_leaves_closed() -> None:
    assert {after for (before, _), after in TRANSITIONS.items() if before is State.CLOSED} == {
        State.CLOSED
    }


def test_no_transition_goes_back() -> None:
    order = list(State)
    assert all(
        order.index(before) <= order.index(after) for (before, _), after in TRANSITIONS.items()
    )


def test_every_state_but_the_last_ends_when_the_transport_is_lost() -> None:
    assert all(TRANSITIONS[state, Trigger.LOST] is State.CLOSED for state in State)


def test_every_trigger_is_used() -> None:
    assert {trigger for _, trigger in TRANSITIONS} == set(Trigger)


def test_diagram_shows_every_change_of_state() -> None:
    text = mermaid()
    for (before, trigger), after in TRANSITIONS.items():
        if before is not after:
            edge = next(
                one for one in text.splitlines() if f"{before.name} --> {after.name}:" in one
            )
            assert trigger.value in edge

"""W3C Trace Context: what of a call's metadata flows on into the calls of its handler."""

from contextvars import copy_context
from typing import Any

import pytest

from rpc_proto import Cancelled
from rpc_proto.service.context import Job, ambient_call, inherit
from rpc_proto.service.propagation import trace_context
from support.driving import make_job

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def serving(metadata: dict[str, str]) -> Job:
    return make_job(metadata=metadata)


def metadata_inside(call: Job | None, given: Any = None) -> Any:
    """Return the metadata of a call that the handler of another makes."""

    def inside() -> Any:
        ambient_call.set(call)
        return inherit(None, 60.0, 100.0, given)[1]

    return copy_context().run(inside)


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        f"00-{TRACE}-{SPAN}-00",
        f"01-{TRACE}-{SPAN}-ff",
        f"fe-{TRACE}-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01-what-comes-later",
    ],
)
def test_well_formed_traceparent_flows_on(parent: str) -> None:
    assert trace_context({"traceparent": parent}) == {"traceparent": parent}


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "00",
        TRACE,
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}-01-more",
        f"01-{TRACE}-{SPAN}-01more",
        f"01-{TRACE}-{SPAN}-01-" + "x" * 513,
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00_{TRACE}_{SPAN}_01",
        f" {PARENT}",
        f"{PARENT}\n",
        f"00-{TRACE}-{SPAN}-\u0661\u0661",
    ],
)
def test_malformed_traceparent_goes_no_further_and_its_tracestate_neither(parent: str) -> None:
    assert trace_context({"traceparent": parent, "tracestate": "a=1"}) == {}


@pytest.mark.parametrize("state", ["a=1", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "x" * 512])
def test_tracestate_flows_on_with_its_traceparent(state: str) -> None:
    both = {"traceparent": PARENT, "tracestate": state}
    assert trace_context({**both, "other": "stays"}) == both
    assert trace_context({"tracestate": state}) == {}


@pytest.mark.parametrize("state", ["", "x" * 513, "a=1\n", "a=\u20ac", "a=\x7f"])
def test_malformed_tracestate_stays_behind_alone(state: str) -> None:
    assert trace_context({"traceparent": PARENT, "tracestate": state}) == {"traceparent": PARENT}


def test_call_outside_of_a_handler_keeps_the_metadata_of_its_caller() -> None:
    given = {"k": "v"}
    assert metadata_inside(None, given) is given
    assert metadata_inside(None) is None


def test_call_of_a_handler_without_trace_keeps_the_metadata_of_its_caller() -> None:
    given = {"k": "v"}
    assert metadata_inside(serving({"own": "1"}), given) is given
    assert metadata_inside(serving({"traceparent": "forged\n"})) is None


def test_call_of_a_handler_gets_the_trace_and_nothing_else() -> None:
    call = serving({"traceparent": PARENT, "tracestate": "a=1", "secret": "x"})
    assert metadata_inside(call) == {"traceparent": PARENT, "tracestate": "a=1"}
    assert metadata_inside(call, {"k": "v"}) == {
        "traceparent": PARENT,
        "tracestate": "a=1",
        "k": "v",
    }


def test_metadata_of_the_caller_goes_before_what_flows_on() -> None:
    call = serving({"traceparent": PARENT, "tracestate": "a=1"})
    own = {"tracestate": "b=2"}
    assert metadata_inside(call, own) == {"traceparent": PARENT, "tracestate": "b=2"}


def test_caller_with_a_traceparent_of_its_own_gets_no_tracestate_of_another() -> None:
    call = serving({"traceparent": PARENT, "tracestate": "a=1"})
    own = {"traceparent": f"00-{TRACE}-{SPAN[::-1]}-01"}
    assert metadata_inside(call, own) == own


def test_trace_of_a_call_that_has_been_answered_does_not_flow_on() -> None:
    call = serving({"traceparent": PARENT})
    call.call.ended = True
    assert metadata_inside(call) is None


def test_trace_of_a_call_that_was_cancelled_flows_on() -> None:
    call = serving({"traceparent": PARENT})
    call.call.ended = True
    call.cancel(Cancelled())
    assert metadata_inside(call) == {"traceparent": PARENT}

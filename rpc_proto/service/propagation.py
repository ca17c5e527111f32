"""What of a call's metadata flows on into the calls that its handler makes: W3C Trace Context.

The names and the formats are those of https://www.w3.org/TR/trace-context/, sections 3.2 and 3.3.
"""

import re
from collections.abc import Mapping

from rpc_proto.wire.headers import NO_METADATA

__all__ = ["merge", "trace_context"]

_LONGEST = 512  # characters of a tracestate, and of what a later version adds to a traceparent

_IDS = "-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# A later version may say more behind the fields that are known.
_TRACEPARENT = re.compile(f"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(?:-[!-~]{{0,{_LONGEST}}})?")
_TRACESTATE = re.compile(f"[ -~]{{1,{_LONGEST}}}")


def trace_context(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return `traceparent` and `tracestate` as far as they are well-formed.

    What is malformed is left out, and a tracestate says nothing without its traceparent.
    """
    parent = metadata.get("traceparent")
    if parent is None or not _TRACEPARENT.fullmatch(parent):
        return NO_METADATA
    state = metadata.get("tracestate")
    if state is None or not _TRACESTATE.fullmatch(state):
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}


def merge(inherited: Mapping[str, str], given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the metadata of a call inside a handler; what its caller gives goes first."""
    if not given:
        return inherited
    given = dict(given)
    if "traceparent" in given:  # of another trace, to which this tracestate does not belong
        inherited = {name: inherited[name] for name in inherited if name != "tracestate"}
    return {**inherited, **given}

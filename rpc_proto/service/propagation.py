"""W3C Trace Context: the metadata that nested calls inherit from the call being served.

Names and formats: https://www.w3.org/TR/trace-context/, sections 3.2 and 3.3.
"""

import re
from collections.abc import Mapping

from rpc_proto.wire.headers import NO_METADATA

__all__ = ["merge", "trace_context"]

_LONGEST = 512  # characters of a tracestate, and of what a later version adds to a traceparent

_IDS = "-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
# A later version may add text after the known fields.
_TRACEPARENT = re.compile(f"00{_IDS}|(?!00|ff)[0-9a-f]{{2}}{_IDS}(?:-[!-~]{{0,{_LONGEST}}})?")
_TRACESTATE = re.compile(f"[ -~]{{1,{_LONGEST}}}")


def trace_context(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """Return `traceparent` and `tracestate`, if they are well-formed.

    Malformed values are omitted; so is a tracestate without a traceparent.
    """
    parent = metadata.get("traceparent")
    if parent is None or not _TRACEPARENT.fullmatch(parent):
        return NO_METADATA
    state = metadata.get("tracestate")
    if state is None or not _TRACESTATE.fullmatch(state):
        return {"traceparent": parent}
    return {"traceparent": parent, "tracestate": state}


def merge(inherited: Mapping[str, str], given: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the metadata of a call inside a handler; what the caller passes takes precedence."""
    if not given:
        return inherited
    given = dict(given)
    if "traceparent" in given:  # of another trace, so this tracestate does not belong to it
        inherited = {name: inherited[name] for name in inherited if name != "tracestate"}
    return {**inherited, **given}

"""Whether gevent has patched the process behind the back of this package."""

import sys

from rpc_proto import LocalProtocolError

__all__ = ["check_patching"]


def _is_patched() -> bool:
    # Another thread may be just importing gevent.
    ask = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    return ask is not None and any(map(ask, ("socket", "threading", "_thread")))


_patched_before = _is_patched()


def check_patching() -> None:
    """Raise LocalProtocolError if gevent has patched the process since this was imported.

    The threads would be greenlets then, and the locks, taken from the modules before, would not
    know of that: the first wait would stop them all.
    """
    if not _patched_before and _is_patched():
        raise LocalProtocolError(
            "gevent patched this process after rpc_blocking was imported: "
            "call gevent.monkey.patch_all() before any other import"
        )

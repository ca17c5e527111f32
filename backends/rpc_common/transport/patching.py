"""Whether gevent has patched this process in a way in which threads cannot work."""

import sys

from rpc_proto import LocalProtocolError

__all__ = ["check_patching"]

# What waits for threads or for sockets.
_MODULES = ("_thread", "threading", "queue", "select", "socket")


def _patched() -> list[str]:
    # Another thread may be just importing gevent.
    ask = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    return [] if ask is None else [name for name in _MODULES if ask(name)]


_at_import = _patched()


def check_patching(package: str, threads_only: bool = False) -> None:
    """Raise LocalProtocolError if gevent has patched some of what the package needs, but not all.

    Threads would be greenlets then, and what they wait for would not know of that, or the other way
    round: the first wait would stop them all. So it is if the process was patched after the import
    of this module. With `threads_only`, anything goes that leaves threads what they are.
    """
    now = _patched()
    if not now or (threads_only and "_thread" not in now and "threading" not in now):
        return
    if now != _at_import:
        raise LocalProtocolError(
            f"gevent patched this process after {package} was imported: "
            "call gevent.monkey.patch_all() before any other import"
        )
    if len(now) < len(_MODULES):
        missing = ", ".join(name for name in _MODULES if name not in now)
        raise LocalProtocolError(
            f"gevent patched {', '.join(now)}, but not {missing}: for {package} "
            "call gevent.monkey.patch_all() without arguments, or do not patch"
        )

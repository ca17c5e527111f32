"""Detecting a process that gevent has patched so that threads cannot work."""

import sys

from rpc_proto import LocalProtocolError

__all__ = ["check_patching"]

# Modules that wait for threads or sockets.
_MODULES = ("_thread", "threading", "queue", "select", "socket")


def _patched() -> list[str]:
    # Another thread may be just importing gevent.
    ask = getattr(sys.modules.get("gevent.monkey"), "is_module_patched", None)
    return [] if ask is None else [name for name in _MODULES if ask(name)]


_at_import = _patched()


def check_patching(package: str, threads_only: bool = False) -> None:
    """Raise LocalProtocolError if gevent has patched only some of what the package needs.

    Threads would then be greenlets but their locks not, or the other way round, and the first wait
    would block them all. The same is true if the process was patched after the import of this
    module. With `threads_only`, only patches of threads matter.
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

"""HTTP/1.1 on the port of the calls: CONNECT, and applications as pure functions.

An application takes a `Request` and the time, and returns a `Response` or a `Promise`, which is
settled later. It must not block.
"""

from typing import TYPE_CHECKING

from rpc_proto.lazy import lazily

from .messages import HttpError, Promise, Request, Response
from .router import Router

if TYPE_CHECKING:
    from rpc_proto.pages.access import Pages
else:
    # The pages stand on this package, and not the other way round.
    __getattr__ = lazily(__name__, {"Pages": "rpc_proto.pages.access"})

__all__ = ["HttpError", "Pages", "Promise", "Request", "Response", "Router"]

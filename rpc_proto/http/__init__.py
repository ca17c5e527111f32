"""HTTP/1.1 on the port of the calls: CONNECT, and applications as pure functions.

An application takes a `Request` and the time and returns a `Response`, or a `Promise` of one that
a later event or moment settles. It must not wait.
"""

from .access import Pages
from .messages import HttpError, Promise, Request, Response
from .router import Router

__all__ = ["HttpError", "Pages", "Promise", "Request", "Response", "Router"]

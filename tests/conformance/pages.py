"""What the servers of the suite show to those who speak HTTP, each counted under a key."""

from conformance.services import LONGEST, Counters
from rpc_proto.http import Promise, Request, Response, Router

__all__ = ["BIG", "Pages"]

BIG = 100_000  # bytes of the big page


class Pages:
    """Pages that answer at once, and some that wait for another request."""

    def __init__(self, counters: Counters, router: Router) -> None:
        self._counters = counters
        self._promises: dict[str, Promise] = {}
        router.add("/echo", self.echo, ["GET", "POST"])
        router.add("/big", self.big)
        router.add("/wait", self.wait)
        router.add("/settle", self.settle)

    def echo(self, request: Request, now: float) -> Response:
        self._count("page", request)
        return Response(200, request.body)

    def big(self, request: Request, now: float) -> Response:
        self._count("page", request)
        return Response(200, bytes(BIG))

    def wait(self, request: Request, now: float) -> Promise:
        key = request.query["key"]
        promise = self._promises[key] = Promise(
            now + LONGEST,
            lambda now: Response.text("too late"),
            lambda: self._counters.add("abandoned", key),
        )
        self._count("promised", request)
        return promise

    def settle(self, request: Request, now: float) -> Response:
        self._promises[request.query["key"]].settle(Response.text("settled"))
        return Response.text("done")

    def _count(self, what: str, request: Request) -> None:
        self._counters.add(what, request.query.get("key", ""))

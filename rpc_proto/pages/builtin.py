"""The pages that every server has: debug, metrics and health."""

from collections.abc import Callable
from typing import Any

from rpc_proto.errors import NotFound
from rpc_proto.http.making import Making, Pieces, Shared
from rpc_proto.http.messages import Application, HttpError, Request, Response
from rpc_proto.http.router import Router

from .access import Pages, check_access

__all__ = ["DEBUG_PATH", "HEALTH_PATH", "METRICS_PATH", "READY_PATH", "BuiltIn"]

DEBUG_PATH = "/debug/rpc"
METRICS_PATH = "/metrics"
HEALTH_PATH = "/healthz"
READY_PATH = "/readyz"


class BuiltIn:
    """A server's `snapshot`, Introspection.services and Health.check as HTTP pages."""

    def __init__(
        self,
        snapshot: Callable[[], dict[str, Any]],
        services: Callable[[], dict[str, dict[str, Any]]],
        check: Callable[[str], str],
    ) -> None:
        self._snapshot = snapshot
        self._services = services
        self._check = check
        self._shared = Shared()

    def add_to(self, router: Router, pages: Pages) -> None:
        """Add the pages that are not off to the router."""
        for path, access, application in (
            (DEBUG_PATH, pages.debug, self.debug),
            (METRICS_PATH, pages.metrics, self.metrics),
            (HEALTH_PATH, "open", self.healthz),
            (READY_PATH, "open", self.readyz),
        ):
            if access != "off":
                router.add(path, _guarded(application, access, pages.token))

    def debug(self, request: Request, now: float) -> Response | Making:
        """Show what the server is doing, as a page or, with `?format=json`, as JSON."""
        form = request.query.get("format", "html")
        if form not in ("html", "json"):
            raise HttpError(400, f"format must be html or json, not {form[:80]!r}")
        return self._shared.ask((DEBUG_PATH, form), now, lambda: self._describe(form))

    def _describe(self, form: str) -> Pieces:
        from .debug import as_page, describe  # with the style and the script

        data = describe(self._snapshot(), self._services())
        return Response.json(data) if form == "json" else (yield from as_page(data))

    def metrics(self, request: Request, now: float) -> Response | Making:
        """Return the statistics in the format of Prometheus."""
        from .metrics import as_metrics, choose

        encode, kind = choose(request.headers.get("accept", ""))
        return self._shared.ask(
            (METRICS_PATH, kind), now, lambda: as_metrics(self._snapshot(), encode, kind)
        )

    def healthz(self, request: Request, now: float) -> Response:
        """Return 200: the process is alive."""
        return Response.text("ok")

    def readyz(self, request: Request, now: float) -> Response:
        """Return 200 if the server, or the service in `?service=`, is ready for calls, else 503."""
        try:
            health = self._check(request.query.get("service", ""))
        except NotFound as error:
            raise HttpError(404, str(error.message)) from None
        return Response.text(health, 200 if health == "serving" else 503)


def _guarded(application: Application, access: str, token: str | None) -> Application:
    def answer(request: Request, now: float) -> Any:
        check_access(request, access, token)
        return application(request, now)

    return answer

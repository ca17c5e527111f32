"""Which application answers a request: a small router, an application itself."""

from collections.abc import Sequence

from rpc_proto.texts import printable

from .making import Making
from .messages import Application, HttpError, Promise, Request, Response

__all__ = ["Router"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Router:
    """Finds an application by path and method: 404 for an unknown path, 405 for another method.

    A path that ends with "/" takes everything below it; of several the longest wins. HEAD comes
    with GET.
    """

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Application]] = {}

    def add(self, path: str, application: Application, methods: Sequence[str] = ("GET",)) -> None:
        """Let an application answer; ValueError for what is taken or cannot be asked for."""
        if not path.startswith("/"):
            raise ValueError(f"a path must begin with /, not {path!r}")
        for method in methods:
            if method not in _METHODS:
                raise ValueError(f"methods are {', '.join(_METHODS)}, not {method!r}")
            if method in self._routes.get(path, ()):
                raise ValueError(f"{method} {path} has an application already")
        # A new table each time, so that whoever reads the old one meanwhile is not disturbed.
        found = {**self._routes.get(path, {}), **dict.fromkeys(methods, application)}
        if "GET" in methods:
            found.setdefault("HEAD", application)
        self._routes = {**self._routes, path: found}

    def remove(self, path: str) -> None:
        """Take a path away; ValueError if there is none."""
        if path not in self._routes:
            raise ValueError(f"{path} has no application")
        self._routes = {known: at for known, at in self._routes.items() if known != path}

    @property
    def paths(self) -> list[str]:
        """The paths that are answered."""
        return sorted(self._routes)

    def __call__(self, request: Request, now: float) -> Response | Promise | Making:
        """Let the application of this path and method answer; HttpError if there is none."""
        found = self._find(request.path)
        if found is None:
            raise HttpError(404, f"there is nothing at {printable(request.path[:200])}")
        application = found.get(request.method)
        if application is None:
            raise HttpError(
                405,
                f"{request.method} is not for {printable(request.path[:200])}",
                [("Allow", ", ".join(sorted(found)))],
            )
        return application(request, now)

    def _find(self, path: str) -> dict[str, Application] | None:
        routes = self._routes
        if path in routes:
            return routes[path]
        end = len(path)
        while (end := path.rfind("/", 0, end)) >= 0:
            if path[: end + 1] in routes:
                return routes[path[: end + 1]]
        return None

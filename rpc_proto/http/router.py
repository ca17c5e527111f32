"""A small router, which is itself an application."""

from collections.abc import Sequence

from rpc_proto.texts import printable

from .making import Making
from .messages import Application, HttpError, Promise, Request, Response

__all__ = ["Router"]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Router:
    """Finds an application by path and method: 404 for an unknown path, 405 for another method.

    A path that ends with "/" includes everything below it; the longest match wins. GET includes
    HEAD.
    """

    def __init__(self) -> None:
        self._routes: dict[str, dict[str, Application]] = {}

    def add(self, path: str, application: Application, methods: Sequence[str] = ("GET",)) -> None:
        """Add an application; ValueError if the path is taken, or the path or method is invalid."""
        if not path.startswith("/"):
            raise ValueError(f"a path must begin with /, not {path!r}")
        for method in methods:
            if method not in _METHODS:
                raise ValueError(f"methods are {', '.join(_METHODS)}, not {method!r}")
            if method in self._routes.get(path, ()):
                raise ValueError(f"{method} {path} already has an application")
        # A new table each time, so that concurrent readers of the old one are not disturbed.
        found = {**self._routes.get(path, {}), **dict.fromkeys(methods, application)}
        if "GET" in methods:
            found.setdefault("HEAD", application)
        self._routes = {**self._routes, path: found}

    def remove(self, path: str) -> None:
        """Remove a path; ValueError if it has no application."""
        if path not in self._routes:
            raise ValueError(f"{path} has no application")
        self._routes = {known: at for known, at in self._routes.items() if known != path}

    @property
    def paths(self) -> list[str]:
        """The paths that are answered."""
        return sorted(self._routes)

    def __call__(self, request: Request, now: float) -> Response | Promise | Making:
        """Call the application for this path and method; HttpError if there is none."""
        found = self._find(request.path)
        if found is None:
            raise HttpError(404, f"nothing found at {printable(request.path[:200])}")
        application = found.get(request.method)
        if application is None:
            raise HttpError(
                405,
                f"{request.method} is not allowed for {printable(request.path[:200])}",
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

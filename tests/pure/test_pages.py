"""Which pages a server has, who may see which, and whether it is well."""

import pytest

from rpc_proto import NotFound, Peer
from rpc_proto.http import HttpError, Pages, Request, Response, Router
from rpc_proto.pages.builtin import BuiltIn
from support.pages import numbers

PATHS = ("/debug/rpc", "/metrics", "/healthz", "/readyz")


def router(pages: Pages | None = None, health: dict[str, str] | None = None) -> Router:
    known = health or {}

    def check(service: str) -> str:
        if service not in known:
            raise NotFound(f"no service {service!r}")
        return known[service]

    made = Router()
    BuiltIn(numbers, dict, check).add_to(made, pages or Pages())
    return made


def answer(at: Router, target: str, method: str = "GET", **fields: str) -> tuple[int, str]:
    try:
        response = at(Request(method, target, fields, peer=Peer("10.0.0.1:5")), 0.0)
    except HttpError as error:
        return error.status, error.message
    assert isinstance(response, Response)
    return response.status, response.body.decode()


def test_by_default_all_pages_are_there_and_the_debug_page_is_for_this_machine():
    pages = router(health={"": "serving"})
    assert pages.paths == sorted(PATHS)
    assert [answer(pages, path)[0] for path in PATHS] == [403, 200, 200, 200]
    assert [answer(pages, path, "HEAD")[0] for path in PATHS] == [403, 200, 200, 200]


def test_a_page_that_is_off_does_not_exist_and_its_path_is_free():
    pages = router(Pages(debug="off", metrics="off"))
    assert pages.paths == ["/healthz", "/readyz"]
    assert answer(pages, "/debug/rpc")[0] == 404
    pages.add("/metrics", lambda request, now: Response.text("mine"))
    assert answer(pages, "/metrics") == (200, "mine\n")


def test_each_page_has_an_access_of_its_own():
    pages = router(Pages(debug="token", metrics="loopback", token="secret"), health={"": "serving"})
    assert [answer(pages, path)[0] for path in ("/debug/rpc", "/metrics")] == [401, 403]
    assert answer(pages, "/debug/rpc", authorization="Bearer secret")[0] == 200


@pytest.mark.parametrize("path", PATHS)
def test_pages_are_only_read(path):
    assert answer(router(Pages(debug="open")), path, "POST")[0] == 405


def test_health_is_ok_as_long_as_the_process_answers():
    assert answer(router(health={"": "not_serving"}), "/healthz") == (200, "ok\n")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/readyz", (200, "serving\n")),
        ("/readyz?service=", (200, "serving\n")),
        ("/readyz?service=Well", (200, "serving\n")),
        ("/readyz?service=Ill", (503, "not_serving\n")),
        ("/readyz?service=Nobody", (404, "no service 'Nobody'")),
    ],
)
def test_readiness_is_that_of_the_server_or_of_the_service_that_is_named(target, expected):
    pages = router(health={"": "serving", "Well": "serving", "Ill": "not_serving"})
    assert answer(pages, target) == expected


def test_a_server_that_is_to_get_no_calls_is_not_ready():
    assert answer(router(health={"": "not_serving"}), "/readyz") == (503, "not_serving\n")

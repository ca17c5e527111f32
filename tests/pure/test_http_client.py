"""One HTTP request at a client: what it says, and what it makes of any answer, however it comes."""

import pytest

from rpc_proto.http.client import Fetch

URL = "http://registry:9999/registry/nodes?wait=30"


def fetch(answer, step=None, **more):
    """Give an answer in parts of `step` bytes, then the end; return (status, body)."""
    what = Fetch("GET", URL, **more)
    step = step or max(1, len(answer))
    for start in range(0, len(answer), step):
        if what.receive(answer[start : start + step]):
            return what.status, what.body
    assert what.receive(b"")
    return what.status, what.body


def outcome(answer, step, **more):
    try:
        return fetch(answer, step, **more)
    except ValueError as error:
        return str(error)


# What it says


def test_request():
    what = Fetch("GET", URL, [("If-None-Match", '"e-1"')])
    assert what.data == (
        b"GET /registry/nodes?wait=30 HTTP/1.1\r\nHost: registry:9999\r\n"
        b'If-None-Match: "e-1"\r\nConnection: close\r\n\r\n'
    )
    assert str(what.where) == "http://registry:9999"


@pytest.mark.parametrize(("body", "length"), [(b"{}", b"2"), (b"", b"0")])
def test_request_with_a_body_says_how_long_it_is(body, length):
    data = Fetch("POST", "http://h/x", body=body).data
    assert b"\r\nContent-Length: " + length + b"\r\n" in data
    assert data.endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    ("url", "where", "first", "host"),
    [
        ("http://h", "http://h:80", b"GET / ", b"Host: h\r"),
        ("https://h/a/b?c=d", "https://h:443", b"GET /a/b?c=d ", b"Host: h\r"),
        ("http://[::1]:81/", "http://[::1]:81", b"GET / ", b"Host: [::1]:81\r"),
    ],
)
def test_urls(url, where, first, host):
    what = Fetch("GET", url)
    assert str(what.where) == where
    assert what.data.startswith(first)
    assert host in what.data


@pytest.mark.fault(58)
@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/",
        "h:80/x",
        "",
        "http:///x",
        "http://user@h/",
        "http://h:0/",
        "http://h:70000/",
        "http://h?x",
        "http://h\r\nX: y/",
        "http://h/a b",
        "http://h/\r\nX: y",
        "http://h/\u00e4",
    ],
)
def test_url_that_cannot_be_asked_is_refused(url):
    with pytest.raises(ValueError):
        Fetch("GET", url)


@pytest.mark.parametrize("field", [("X", "a\r\nY: b"), ("X Y", "a"), ("X", "\u20ac")])
def test_field_that_cannot_be_said_is_refused(field):
    with pytest.raises(ValueError):
        Fetch("GET", URL, [field])


# Answers

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n"

GOOD = {
    "with a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", (200, b"hello")),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", (200, b"")),
    "in chunks": (
        CHUNKED + b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
        (200, b"hello"),
    ),
    "up to the end": (b"HTTP/1.1 200 OK\r\n\r\nhello", (200, b"hello")),
    "of HTTP/1.0": (b"HTTP/1.0 200 OK\r\n\r\nhello", (200, b"hello")),
    "not modified": (b'HTTP/1.1 304 Not Modified\r\nETag: "e-1"\r\n\r\n', (304, b"")),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b"")),
    "without a reason": (b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n", (503, b"")),
    "after others": (EARLY + b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", (200, b"x")),
    "followed by what nobody asked for": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 500 No\r\n\r\n",
        (200, b"x"),
    ),
    "a redirect": (
        b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\nContent-Length: 0\r\n\r\n",
        (302, b""),
    ),
}

RULES = "the response is not valid HTTP: "
HUNG_UP = "the server closed the connection before the response was complete"
BAD = {
    "nothing": (b"", HUNG_UP),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", RULES),
    "our own protocol": (b'{"error":"no"}\n\n', RULES),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", HUNG_UP),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", HUNG_UP),
    "half the chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
        HUNG_UP,
    ),
    "a chunk without a size": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhel\r\n0\r\n\r\n",
        RULES,
    ),
    "two lengths": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        RULES,
    ),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", RULES),
    "a space before the colon": (b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", RULES),
    "an endless head": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 7000, RULES),
    "an endless line": (b"HTTP/1.1 200 " + b"x" * 40_000, RULES),
    "an upgrade": (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nabc", None),
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("step", [None, 1, 2, 7])
def test_good_answer_is_the_same_however_it_is_cut(name, step):
    answer, expected = GOOD[name]
    assert fetch(answer, step) == expected


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("step", [None, 1, 2, 1000])
def test_bad_answer_is_a_clear_error_however_it_is_cut(name, step):
    answer, expected = BAD[name]
    error = outcome(answer, step)
    assert isinstance(error, str)
    assert expected is None or error.startswith(expected)


def test_answer_is_complete_at_its_last_byte():
    answer = GOOD["with a length"][0]
    what = Fetch("GET", URL)
    assert not any(what.receive(answer[n : n + 1]) for n in range(len(answer) - 1))
    assert what.receive(answer[-1:])


@pytest.mark.fault(59)
@pytest.mark.parametrize("head", [b"Content-Length: 11\r\n", b""])
@pytest.mark.parametrize("step", [None, 1])
def test_answer_longer_than_the_limit_is_cut_off(head, step):
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\nhello hello"
    assert outcome(answer, step, max_answer=10) == "the response is longer than 10 bytes"
    assert fetch(answer, step, max_answer=11) == (200, b"hello hello")


@pytest.mark.fault(59)
def test_endless_answer_holds_no_more_than_the_limit_and_one_read():
    what = Fetch("GET", URL, max_answer=100_000)
    what.receive(b"HTTP/1.1 200 OK\r\n\r\n")
    what.receive(bytes(65536))
    with pytest.raises(ValueError, match="longer than 100000 bytes"):
        what.receive(bytes(65536))
    assert len(what.body) <= 100_000 + 65536

"""Bytes by which requests are smuggled past other readers: refused here, or read in the one way.

Behind each stands a poison request. Where the head or the body is refused it must never reach the
application; where they are right it is the next request, and is seen once.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from rpc_fuzz.wire import line, options
from rpc_proto import HttpServed, ServerConfig, ServerPort, State
from rpc_proto.http import Request, Response
from support.driving import caused

POISON = b"GET /poison HTTP/1.1\r\nHost: x\r\n\r\n"
HELLO = line(options())


class Case(NamedTuple):
    """What is sent, and what must come of it."""

    data: bytes
    status: int  # of the one answer; what is right has 200
    seen: Sequence[Any] = ()  # method, target and body of the requests before the poison
    host: str = "x"


def refused(status: int, *parts: bytes) -> Case:
    return Case(b"".join(parts), status)


def right(data: bytes, *seen: Any, host: str = "x") -> Case:
    return Case(data, 200, seen, host)


def get(*fields: bytes) -> bytes:
    return b"GET /a HTTP/1.1\r\nHost: x\r\n" + b"".join(one + b"\r\n" for one in fields) + b"\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return get(*fields).replace(b"GET", b"POST", 1) + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


A = ("GET", "/a", b"")
CHUNKED = b"Transfer-Encoding: chunked"

# Two lengths: a body ends in two places (RFC 9112, 6.3). The comment says what others do, or did.
FRAMING = {
    # CL.TE: the front counts 6 bytes, the back stops at the chunk 0 and reads the rest as a request
    "CL.TE": refused(400, post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG")),
    # TE.CL: the other way round
    "TE.CL": refused(400, post(CHUNKED, b"Content-Length: 4", body=b"5c\r\n")),
    # 0.CL: the front sees no length in a name that it does not know
    "CL.0": right(post(b"Content-Length: 0"), ("POST", "/a", b"")),
    # the first one counts, or the last one
    "two lengths": refused(400, post(b"Content-Length: 3", b"Content-Length: 30", body=b"abc")),
    # some take equal ones for one, some refuse
    "two equal lengths": refused(
        400, post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc")
    ),
    "two lengths in other case": refused(
        400, post(b"Content-Length: 3", b"CONTENT-LENGTH: 0", body=b"abc")
    ),
    # read as 3, as 33, or joined
    "list of lengths": refused(400, post(b"Content-Length: 3, 3", body=b"abc")),
    "list of other lengths": refused(400, post(b"Content-Length: 3, 0", body=b"abc")),
    # int() of many languages takes these
    "length with plus": refused(400, post(b"Content-Length: +3", body=b"abc")),
    "length with minus": refused(400, post(b"Content-Length: -3", body=b"abc")),
    "length minus nothing": refused(400, post(b"Content-Length: -0")),
    "length in hex": refused(400, post(b"Content-Length: 0x3", body=b"abc")),
    "length in octal": refused(400, post(b"Content-Length: 0o3", body=b"abc")),
    "length with underscore": refused(400, post(b"Content-Length: 1_0", body=b"abc")),
    "length with fraction": refused(400, post(b"Content-Length: 3.0", body=b"abc")),
    "length with exponent": refused(400, post(b"Content-Length: 3e0", body=b"abc")),
    "length with text behind": refused(400, post(b"Content-Length: 3 x", body=b"abc")),
    "length with space inside": refused(400, post(b"Content-Length: 1 0", body=b"abc")),
    "length with quotes": refused(400, post(b'Content-Length: "3"', body=b"abc")),
    # strtol gives 0
    "length without digits": refused(400, post(b"Content-Length: abc", body=b"abc")),
    "length of nothing": refused(400, post(b"Content-Length:", body=b"abc")),
    "length of spaces": refused(400, post(b"Content-Length:   ", body=b"abc")),
    # str.isdigit() is true for these (arabic-indic three, superscript three)
    "length in unicode digits": refused(400, post("Content-Length: \u0663".encode(), body=b"abc")),
    "length in latin-1 digits": refused(400, post(b"Content-Length: \xb3", body=b"abc")),
    # str.strip() takes these away
    "length behind vertical tab": refused(400, post(b"Content-Length: \x0b3", body=b"abc")),
    "length behind no-break space": refused(400, post(b"Content-Length: \xa03", body=b"abc")),
    "length before NEL": refused(400, post(b"Content-Length: 3\x85", body=b"abc")),
    # overflows 64 bits to 3
    "length over 2^64": refused(400, post(b"Content-Length: 18446744073709551619x", body=b"abc")),
    "length of 2^64 + 3": refused(413, post(b"Content-Length: 18446744073709551619", body=b"abc")),
    "length of 100 digits": refused(400, post(b"Content-Length: " + b"9" * 100, body=b"abc")),
    # octal for some, but the grammar is plain
    "length with zeros": right(post(b"Content-Length: 003", body=b"abc"), ("POST", "/a", b"abc")),
    "length with tabs": right(post(b"Content-Length:\t3\t", body=b"abc"), ("POST", "/a", b"abc")),
    # a front that drops names with _ sees none, WSGI and CGI see one
    "length with _": refused(400, post(b"Content_Length: 3", body=b"abc")),
    "length with - and _": refused(
        400, post(b"Content-Length: 3", b"Content_Length: 0", body=b"abc")
    ),
    "encoding with _": refused(400, post(b"Transfer_Encoding: chunked", body=b"0\r\n\r\n")),
    # GET has no body for some fronts
    "GET with a body": right(get(b"Content-Length: 3") + b"abc", ("GET", "/a", b"abc")),
    "body that is a request": right(
        post(b"Content-Length: %d" % len(POISON), body=POISON), ("POST", "/a", POISON)
    ),
}

# TE.TE: one of two readers does not recognise the encoding and goes by the length, or by none.
ENCODINGS = {
    "encoding twice": refused(400, post(CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "encoding and identity": refused(400, post(CHUNKED, b"Transfer-Encoding: identity")),
    "chunked not last": refused(501, post(b"Transfer-Encoding: chunked, identity")),
    "chunked behind another": refused(501, post(b"Transfer-Encoding: gzip, chunked")),
    "chunked twice in a list": refused(501, post(b"Transfer-Encoding: chunked, chunked")),
    "chunked with comma": refused(501, post(b"Transfer-Encoding: chunked,")),
    "comma before chunked": refused(501, post(b"Transfer-Encoding: ,chunked")),
    "identity": refused(501, post(b"Transfer-Encoding: identity")),
    "unknown encoding": refused(501, post(b"Transfer-Encoding: xchunked")),
    "encoding with parameter": refused(501, post(b"Transfer-Encoding: chunked;q=1")),
    "encoding in quotes": refused(501, post(b'Transfer-Encoding: "chunked"')),
    "empty encoding": refused(501, post(b"Transfer-Encoding:")),
    "encoding behind vertical tab": refused(400, post(b"Transfer-Encoding: \x0bchunked")),
    "encoding behind form feed": refused(400, post(b"Transfer-Encoding: \x0cchunked")),
    "encoding behind NUL": refused(400, post(b"Transfer-Encoding: \0chunked")),
    "encoding before no-break space": refused(501, post(b"Transfer-Encoding: chunked\xa0")),
    # folds to "chunked" in Unicode (long s, Kelvin sign)
    "encoding in unicode": refused(501, post("Transfer-Encoding: chun\u212aed".encode())),
    "encoding behind space in name": refused(400, post(b"Transfer-Encoding : chunked")),
    "encoding behind tab in name": refused(400, post(b"Transfer-Encoding\t: chunked")),
    "encoding before byte in name": refused(400, post(b"Transfer-Encoding\xff: chunked")),
    "encoding without colon": refused(400, post(b"Transfer-Encoding chunked")),
    "encoding in the next line": refused(400, post(b"Transfer-Encoding:\r\n chunked")),
    "encoding behind a colon": refused(400, post(b":Transfer-Encoding: chunked")),
    "encoding behind bare CR": refused(400, post(b"X: a\rTransfer-Encoding: chunked")),
    "encoding behind bare LF": refused(400, post(b"X: a\nTransfer-Encoding: chunked")),
    # HTTP/1.0 has none, and a front of that age passes it on
    "encoding in HTTP/1.0": refused(
        400, post(CHUNKED, body=b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0")
    ),
    "encoding in other case": right(
        post(b"tRANSFER-eNCODING:\tcHUNKED\t", body=b"0\r\n\r\n"), ("POST", "/a", b"")
    ),
}

# The chunks themselves (RFC 9112, 7.1).
CHUNKS = {
    "chunks": right(chunked(b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"), ("POST", "/a", b"abcd")),
    "size with zeros": right(chunked(b"0003\r\nabc\r\n000\r\n\r\n"), ("POST", "/a", b"abc")),
    "size in either case": right(
        chunked(b"a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"),
        ("POST", "/a", b"0123456789" * 2),
    ),
    "extension": right(chunked(b'3;a="b"\r\nabc\r\n0 ;c\r\n\r\n'), ("POST", "/a", b"abc")),
    "size with 0x": refused(400, chunked(b"0x3\r\nabc\r\n0\r\n\r\n")),
    "size with plus": refused(400, chunked(b"+3\r\nabc\r\n0\r\n\r\n")),
    "size with minus": refused(400, chunked(b"-3\r\nabc\r\n0\r\n\r\n")),
    "size with underscore": refused(400, chunked(b"1_0\r\nabc\r\n0\r\n\r\n")),
    "size behind a space": refused(400, chunked(b" 3\r\nabc\r\n0\r\n\r\n")),
    # trimmed by some; others stop at the space
    "size before a space": refused(400, chunked(b"3 \r\nabc\r\n0\r\n\r\n")),
    "size with text": refused(400, chunked(b"3 x\r\nabc\r\n0\r\n\r\n")),
    "no size": refused(400, chunked(b"\r\nabc\r\n0\r\n\r\n")),
    "only an extension": refused(400, chunked(b";a\r\nabc\r\n0\r\n\r\n")),
    # overflows 64 bits to 3
    "size of 2^64 + 3": refused(400, chunked(b"10000000000000003\r\nabc\r\n0\r\n\r\n")),
    "size of 2^64 - 1": refused(413, chunked(b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n")),
    # TERM.EXT, EXT.TERM: an LF ends the line for one, and belongs to the extension for the other
    "LF behind the size": refused(400, chunked(b"3\nabc\r\n0\r\n\r\n")),
    "LF in the extension": refused(400, chunked(b"3;a\nb\r\nabc\r\n0\r\n\r\n")),
    "CR in the extension": refused(400, chunked(b"3;a\rb\r\nabc\r\n0\r\n\r\n")),
    "CR behind the size": refused(400, chunked(b"3\rabc\r\n0\r\n\r\n")),
    "two CR behind the size": refused(400, chunked(b"3\r\r\nabc\r\n0\r\n\r\n")),
    "NUL in the extension": refused(400, chunked(b"3;\0\r\nabc\r\n0\r\n\r\n")),
    "extension without end": refused(400, chunked(b"3;" + b"a" * 300)),
    "extensions without end": refused(400, chunked((b"1;" + b"a" * 200 + b"\r\na\r\n") * 50)),
    # TERM.SPILL, SPILL.TERM: two bytes behind the data are taken unseen, or none need be there
    "LF behind the data": refused(400, chunked(b"3\r\nabc\n0\r\n\r\n")),
    "text behind the data": refused(400, chunked(b"3\r\nabcXX0\r\n\r\n")),
    "nothing behind the data": refused(400, chunked(b"3\r\nabc0\r\n\r\n")),
    "data longer than its size": refused(400, chunked(b"3\r\nabcd\r\n0\r\n\r\n")),
    # the poison would be the rest of the chunk
    "LF behind the last chunk": refused(400, chunked(b"0\n\n")),
    "LF in place of the last line": refused(400, chunked(b"0\r\n\n")),
    "CR in place of the last line": refused(400, chunked(b"0\r\n\r")),
    "trailers": right(chunked(b"0\r\nX-Sum: 1\r\n\r\n"), ("POST", "/a", b"")),
    # merged into the head by some
    "trailer with a length": right(
        chunked(b"0\r\nContent-Length: 30\r\n\r\n"), ("POST", "/a", b"")
    ),
    "trailer with LF": refused(400, chunked(b"0\r\nX: 1\n\r\n")),
    "trailer without a name": refused(400, chunked(b"0\r\n: 1\r\n\r\n")),
    "trailer that is folded": refused(400, chunked(b"0\r\nX: 1\r\n y\r\n\r\n")),
    # no empty line: the poison's fields would be trailers
    "trailer that is a request": refused(400, chunked(b"0\r\n")),
    "trailers without end": refused(400, chunked(b"0\r\n" + b"X: 12345678\r\n" * 1000)),
    "long trailer": refused(400, chunked(b"0\r\nX: " + b"a" * 9000 + b"\r\n\r\n")),
}

# Where lines and the head end (RFC 9112, 2.2 and 5).
LINES = {
    "obs-fold": refused(400, get(b"X: a\r\n b")),
    "obs-fold with tab": refused(400, get(b"X: a\r\n\tContent-Length: 5")),
    # skipped by some, the first field for others
    "space before the first field": refused(400, b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n"),
    "line of a space": refused(400, get(b"X: a\r\n ")),
    "space before the colon": refused(400, get(b"X : a")),
    "field without a name": refused(400, get(b": a")),
    "field without a colon": refused(400, get(b"X")),
    "name with a space": refused(400, get(b"X Y: a")),
    "name with a slash": refused(400, get(b"X/Y: a")),
    "name with a quote": refused(400, get(b'X"Y: a')),
    "name with a bracket": refused(400, get(b"X(Y: a")),
    "name with a latin-1 letter": refused(400, get(b"\xe4: a")),
    "name with NUL": refused(400, get(b"X\0: a")),
    "name with DEL": refused(400, get(b"X\x7f: a")),
    "value with NUL": refused(400, get(b"X: a\0b")),
    "value with bare CR": refused(400, get(b"X: a\rb")),
    "value with bare LF": refused(400, get(b"X: a\nb")),
    "value with ESC": refused(400, get(b"X: \x1b[2J")),
    "two CR before an LF": refused(400, get(b"X: a\r")),
    "LF in place of CRLF": refused(400, get(b"X: a").replace(b"\r\n", b"\n")),
    "one LF among CRLF": refused(400, get(b"X: a").replace(b"x\r\n", b"x\n")),
    "empty line of LF": refused(400, b"GET /a HTTP/1.1\r\nHost: x\r\n\n"),
    "empty line behind LF": refused(400, b"GET /a HTTP/1.1\r\nHost: x\n\r\n"),
    "empty line of CR": refused(400, b"GET /a HTTP/1.1\r\nHost: x\r\n\r"),
    "empty line of two CR": refused(400, b"GET /a HTTP/1.1\r\nHost: x\r\n\r\r\n"),
    "value with latin-1": right(get(b"X: \xe4\xff"), A),
    "value of nothing": right(get(b"X:"), A),
    "value with colons": right(get(b"X::: a"), A),
    "empty lines before it": right(get() + b"\r\n\r\n" + get(), A, A),
    "LF before it": refused(400, b"\n" + get()),
    "CR before it": refused(400, b"\r" + get()),
    "space before it": refused(400, b" " + get()),
    "NUL before it": refused(400, b"\0" + get()),
}

# The request line and what it means (RFC 9112, 3; RFC 9110, 7.2 and 9.3.6).
REQUESTS = {
    "HTTP/0.9": refused(400, b"GET /a\r\n\r\n"),
    "HTTP/0.9 with a version": refused(505, b"GET /a HTTP/0.9\r\nHost: x\r\n\r\n"),
    "HTTP/1.2": refused(505, get().replace(b"/1.1", b"/1.2")),
    "HTTP/2.0": refused(505, get().replace(b"/1.1", b"/2.0")),
    "preface of HTTP/2": refused(505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/1.10": refused(400, get().replace(b"/1.1", b"/1.10")),
    "HTTP/01.1": refused(400, get().replace(b"/1.1", b"/01.1")),
    "HTTP/1": refused(400, get().replace(b"/1.1", b"/1")),
    "HTTP/1,1": refused(505, get().replace(b"/1.1", b"/1,1")),
    "http/1.1": refused(400, get().replace(b"HTTP", b"http")),
    "no version": refused(400, get().replace(b" HTTP/1.1", b"")),
    "version alone": refused(400, b"HTTP/1.1\r\nHost: x\r\n\r\n"),
    "space behind the version": refused(400, get().replace(b"/1.1", b"/1.1 ")),
    "tab behind the version": refused(400, get().replace(b"/1.1", b"/1.1\t")),
    "two spaces": refused(400, get().replace(b" /a ", b" /a  ")),
    "tabs for spaces": refused(400, get().replace(b" ", b"\t", 2)),
    # the rest of the line is a request for those who stop at the first version
    "space in the target": refused(400, get().replace(b"/a", b"/a HTTP/1.1 /b")),
    "latin-1 in the target": refused(400, get().replace(b"/a", b"/\xe4")),
    "NUL in the target": refused(400, get().replace(b"/a", b"/\0")),
    "fragment in the target": refused(400, get().replace(b"/a", b"/a#/b")),
    "no target": refused(400, get().replace(b"/a", b"")),
    "target without a slash": refused(400, get().replace(b"/a", b"a")),
    "target of another scheme": refused(400, get().replace(b"/a", b"file:///a")),
    "target of a host": refused(400, get().replace(b"/a", b"x:80")),
    "star for GET": refused(400, get().replace(b"/a", b"*")),
    "star for OPTIONS": right(get().replace(b"GET /a", b"OPTIONS *"), ("OPTIONS", "*", b"")),
    "method with a bracket": refused(400, get().replace(b"GET", b"GE[T")),
    "method with a colon": refused(400, get().replace(b"GET", b"GET:")),
    # the path begins behind the host, which a slash in the query does not show
    "URL": right(get().replace(b"/a", b"http://y:80/a?b=/c"), ("GET", "/a?b=/c", b""), host="y:80"),
    "URL without a path": right(
        get().replace(b"/a", b"HTTP://y?b=/c"), ("GET", "/?b=/c", b""), host="y"
    ),
    "URL with a user": refused(400, get().replace(b"/a", b"http://x@y/a")),
    "URL without a host": refused(400, get().replace(b"/a", b"http:///a")),
    "URL with a backslash": refused(400, get().replace(b"/a", b"http://x\\@y/a")),
    "URL with a fragment": refused(400, get().replace(b"/a", b"http://x/a#b")),
    # one routes by the first, another by the last
    "two hosts": refused(400, get(b"Host: y")),
    "two equal hosts": refused(400, get(b"hOST: x")),
    "no host": refused(400, b"GET /a HTTP/1.1\r\n\r\n"),
    "host with a space": refused(400, b"GET /a HTTP/1.1\r\nHost: x y\r\n\r\n"),
    "list of hosts": refused(400, b"GET /a HTTP/1.1\r\nHost: x, y\r\n\r\n"),
    "host with a path": refused(400, b"GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n"),
    "host with a user": refused(400, b"GET /a HTTP/1.1\r\nHost: x@y\r\n\r\n"),
    "host with another port": refused(400, b"GET /a HTTP/1.1\r\nHost: x:80:90\r\n\r\n"),
    "host in latin-1": refused(400, b"GET /a HTTP/1.1\r\nHost: \xe4\r\n\r\n"),
    "host of IPv6": right(b"GET /a HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", A, host="[::1]:80"),
    "empty host": right(b"GET /a HTTP/1.1\r\nHost:\r\n\r\n", A, host=""),
    # answered before its body, which is then the next request (0.CL by Expect)
    "other expectation": refused(417, post(b"Expect: y 100-continue", b"Content-Length: 3")),
    "two expectations": refused(
        400, post(b"Expect: 100-continue", b"Expect: x", b"Content-Length: 3")
    ),
    # a front that has connected copies the rest unseen
    "CONNECT with a length": refused(
        400, b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nContent-Length: 3\r\n\r\n"
    ),
    "CONNECT with chunks": refused(
        400, b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "CONNECT to another path": refused(404, b"CONNECT /a HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT to a path with query": refused(404, b"CONNECT /rpc?a HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT to an encoded path": refused(404, b"CONNECT /%72pc HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT to a URL": refused(400, b"CONNECT http://x/ HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT to a star": refused(400, b"CONNECT * HTTP/1.1\r\nHost: x\r\n\r\n"),
    "CONNECT without a port": refused(400, b"CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT to no port": refused(400, b"CONNECT x: HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT to port 0": refused(400, b"CONNECT x:0 HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT to port 65536": refused(400, b"CONNECT x:65536 HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT to no host": refused(400, b"CONNECT :1 HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT with a user": refused(400, b"CONNECT u@x:1 HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
    "CONNECT without Host": refused(400, b"CONNECT x:1 HTTP/1.1\r\n\r\n", HELLO),
    "CONNECT with LF and CRLF": refused(400, b"CONNECT x:1 HTTP/1.0\n\r\n", HELLO),
    "CONNECT of HTTP/2.0": refused(505, b"CONNECT x:1 HTTP/2.0\r\nHost: x\r\n\r\n", HELLO),
    # not the method, which has capitals
    "connect": refused(400, b"connect x:1 HTTP/1.1\r\nHost: x\r\n\r\n", HELLO),
}

# Row 40 of the faults, at the very limit.
LIMITS = {
    "line at the limit": right(
        get().replace(b"/a", b"/" + b"a" * (8192 - 14)), ("GET", "/" + "a" * (8192 - 14), b"")
    ),
    "line over the limit": refused(414, get().replace(b"/a", b"/" + b"a" * (8192 - 13))),
    "line without end": refused(414, b"GET /" + b"a" * 9000),
    "100 fields": right(get(*[b"X: 1"] * 99), A),
    "101 fields": refused(431, get(*[b"X: 1"] * 100)),
    "head at the limit": right(get(b"X: " + b"a" * (32768 - len(get(b"X: ")))), A),
    "head over the limit": refused(431, get(b"X: " + b"a" * (32769 - len(get(b"X: "))))),
    "head without end": refused(431, b"GET /a HTTP/1.1\r\nX: " + b"a" * 33000),
    "body over the limit": refused(413, post(b"Content-Length: 1048577")),
}

TABLE = {**FRAMING, **ENCODINGS, **CHUNKS, **LINES, **REQUESTS, **LIMITS}
LONG = 1000  # of these not every cut is tried

row_39 = pytest.mark.fault(39)
row_40 = pytest.mark.fault(40)


class Outcome(NamedTuple):
    """All that can be seen of a server that got some bytes."""

    requests: list[Any]
    hosts: list[str]
    exchanges: list[Any]
    sent: bytes
    state: State


def outcome(*pieces: bytes) -> Outcome:
    requests: list[Any] = []
    hosts: list[str] = []

    def application(request: Request, now: float) -> Response:
        requests.append((request.method, request.target, request.body))
        hosts.append(request.headers.get("host", ""))
        return Response.text("seen")

    server = ServerPort(ServerConfig(), now=0.0, application=application)
    events = []
    now = 0.0
    for piece in (get(), *pieces):  # the first byte of a connection decides what it is
        events += caused(server.receive_data, now, piece)
        while (at := server.next_timeout()) is not None and at < 1.0:
            now = at
            events += caused(server.handle_timeout, now)
    exchanges = [(event.request, event.status) for event in events if isinstance(event, HttpServed)]
    return Outcome(requests[1:], hosts[1:], exchanges[1:], server.data_to_send(), server.state)


def cuts(data: bytes) -> range:
    # A third of all places, others for other data; single bytes go over all of them.
    return range(1 + len(data) % 3, len(data), max(3, len(data) // LONG))


def test_the_table_is_long_enough():
    assert len(TABLE) >= 180
    assert len({case.data for case in TABLE.values()}) == len(TABLE)


@row_39
@row_40
@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if case.status != 200])
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_behind_it_is_read(name):
    data, status, _, _ = TABLE[name]
    came = outcome(data + POISON + POISON)
    assert [seen for seen in came.requests if "poison" in seen[1]] == []
    assert came.requests == []
    assert [answer for _, answer in came.exchanges] == [status]
    assert came.state is State.CLOSING
    answer = came.sent.partition(b"seen\n")[2]
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"\r\n\r\n") == 1


@pytest.mark.parametrize("name", [name for name, case in TABLE.items() if case.status == 200])
def test_what_is_right_is_read_in_the_one_way_and_the_next_request_is_seen_once(name):
    data, _, seen, host = TABLE[name]
    came = outcome(data + POISON)
    assert came.requests == [*seen, ("GET", "/poison", b"")]
    assert came.hosts[0] == host
    assert [answer for _, answer in came.exchanges] == [200] * (len(seen) + 1)
    assert came.state is State.OPEN


@row_39
@row_40
@pytest.mark.parametrize("name", TABLE)
def test_the_outcome_is_the_same_however_the_bytes_are_cut(name):
    data = TABLE[name].data + POISON
    whole = outcome(data)
    for at in cuts(data):
        assert outcome(data[:at], data[at:]) == whole
    size = max(1, len(data) // LONG)
    assert outcome(*(data[at : at + size] for at in range(0, len(data), size))) == whole


@pytest.mark.fault(41)
@pytest.mark.parametrize(
    "head",
    [
        b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"CONNECT [::1]:65535 HTTP/1.0\r\n\r\n",
        b"CONNECT /rpc HTTP/1.0\n\n",  # as Go programs send it
        b"CONNECT /rpc HTTP/1.0\nUser-Agent: y\n\n",
        b"\r\nCONNECT /rpc HTTP/1.0\r\n\r\n",
    ],
)
def test_behind_a_connect_there_is_no_http_however_it_is_cut(head):
    whole = outcome(head + POISON)
    assert (whole.requests, [status for _, status in whole.exchanges]) == ([], [200])
    answer = whole.sent.partition(b"seen\n")[2]
    assert answer.startswith(b"HTTP/1.1 200 Connected\r\n\r\n{")
    assert b'"error"' in answer
    for at in cuts(head + POISON):
        came = outcome((head + POISON)[:at], (head + POISON)[at:])
        # The refusal quotes what had come.
        assert came._replace(sent=b"") == whole._replace(sent=b"")

"""What an operator reads: the same lines from the servers of all backends, and the access log."""

import asyncio
import contextlib
import importlib
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from conformance.backends import package
from conformance.runtimes import GAVE_UP, Client, Runtime, until
from conformance.services import Basic, Counters, Failing, Own, with_coroutines
from rpc_common.telemetry.log import get_log
from rpc_proto import (
    CallError,
    Codec,
    DeadlineExceeded,
    HandshakeError,
    Internal,
    ResourceExhausted,
    ServerConfig,
    current_call,
)
from rpc_proto.wire.handshake import encode_refusal

LINES = "The same log lines; an access log if asked for"


class Logged:
    """A server in this process whose lines are caught."""

    def __init__(self, runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
        self.runtime = runtime
        self.name = package(runtime.name)
        self.counters = Counters()
        self.server: Any = None
        self.address = ""
        self._host = importlib.import_module(f"conformance.host_{runtime.name}")
        self._caplog = caplog

    @contextlib.contextmanager
    def serving(self, **options: Any) -> Iterator[None]:
        self.server = importlib.import_module(self.name).Server(**options)
        services = [Basic(self.counters), Failing()]
        if self.runtime.name == "asyncio":
            services = [with_coroutines(service) for service in services]
        for service in (*services, self._host.Gate(self.counters)):
            self.server.register(service)
        self.address = self.runtime.do(lambda: self.server.start("tcp://127.0.0.1:0"))
        try:
            yield
        finally:
            self.runtime.do(lambda: self.server.stop(0.0))

    @contextlib.contextmanager
    def calling(self, **options: Any) -> Iterator[Client]:
        with self.serving(**options), self.runtime.connect(self.address) as client:
            yield client

    def leaving(self, leave: Callable[[], None]) -> Any:
        """Return a service that waits, and calls this when it is cancelled."""
        gate = self._host.Gate(self.counters)

        class Leaving:
            def wait(self, key: str) -> Any:
                current_call().on_cancel(leave)
                return gate.wait(key)

        class AsyncLeaving(Leaving):
            async def wait(self, key: str) -> Any:
                return await super().wait(key)

        return AsyncLeaving() if self.runtime.name == "asyncio" else Leaving()

    def get(self, path: str) -> bytes:
        """Return what the server answers to a request for a page."""
        host, _, port = self.address.removeprefix("tcp://").partition(":")
        with socket.create_connection((host, int(port)), 20) as sock:
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: sock.recv(65536), b""))

    def lines(self, level: int, logger: str = "") -> list[str]:
        """Return the lines of just that level."""
        name = self.name + logger
        records = [entry for entry in self._caplog.records if entry.name == name]
        return [entry.getMessage() for entry in records if entry.levelno == level]

    def access(self, count: int) -> list[str]:
        """Wait for so many lines of the access log; return them without what differs each time."""
        until(lambda: len(self.lines(logging.INFO, ".access")) >= count)
        lines = self.lines(logging.INFO, ".access")
        assert len(lines) == count
        form = re.compile(r"127\.0\.0\.1:\d+ (.*) \d+\.\d{3} ms (\d+) bytes")
        matches = [form.fullmatch(line) for line in lines]
        assert None not in matches, lines
        return [f"{match[1]} {match[2]}" for match in matches if match]


@pytest.fixture
def logged(client_backend: Runtime, caplog: pytest.LogCaptureFixture) -> Logged:
    caplog.set_level(logging.DEBUG, package(client_backend.name))
    return Logged(client_backend, caplog)


@pytest.mark.feature(LINES)
def test_life_of_a_server_is_three_lines(logged: Logged):
    with logged.serving():
        with logged.runtime.connect(logged.address) as client:
            client.call("Basic.echo")
            with pytest.raises(CallError):
                client.call("No.such")
        until(lambda: not logged.server.stats["connections"])
    assert logged.lines(logging.INFO) == [
        f"listening on {logged.address}",
        "stopping within 0 s: 0 connections, 0 calls running, 0 queued",
        "stopped: 1 calls served, 0 failed, 1 refused, 0 cancelled",
    ]
    assert logged.lines(logging.WARNING) == []


@pytest.mark.feature(LINES)
def test_server_that_is_stopped_twice_says_so_once(logged: Logged):
    with logged.serving():
        logged.runtime.do(lambda: logged.server.stop(0.0))
    assert len(logged.lines(logging.INFO)) == 3


@pytest.mark.feature(LINES)
def test_stopping_tells_what_is_going_on(logged: Logged, key):
    with logged.serving(), logged.runtime.connect(logged.address) as client:
        client.start("Gate.wait", key)
        assert logged.counters.wait(f"started:{key}", 1, 10) == 1
        logged.runtime.do(lambda: logged.server.stop(0.1))
    assert logged.lines(logging.INFO)[1:] == [
        "stopping within 0.1 s: 1 connections, 1 calls running, 0 queued",
        "stopped: 0 calls served, 1 failed, 0 refused, 1 cancelled",
    ]


@pytest.mark.feature(LINES)
def test_failure_of_a_handler_is_a_line_and_an_error_it_chose_is_none(logged: Logged):
    with logged.calling() as client:
        for method in ("Failing.bug", "Failing.own_code"):
            with pytest.raises(CallError):
                client.call(method)
    assert logged.lines(logging.ERROR) == ["Failing.bug failed"]
    assert logged.lines(logging.WARNING) == []


@pytest.mark.feature(LINES)
def test_stranger_is_worth_no_line_but_a_protocol_violation_is(logged: Logged):
    with logged.serving():
        port = int(logged.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as stranger:
            stranger.sendall(b"\x16\x03\x01 not for us\r\n")
            while stranger.recv(4096):
                pass
        until(lambda: logged.lines(logging.DEBUG))
        assert logged.lines(logging.WARNING) == []
        with logged.runtime.connect(logged.address) as client:
            client.do(lambda real: real.connection._out.append(b"\xff" * 16))
            with pytest.raises(CallError):
                client.call("Basic.echo", timeout=10)
        (line,) = logged.lines(logging.WARNING)
        assert re.match(r"127\.0\.0\.1:\d+: protocol violation: ", line)


@pytest.mark.feature(LINES)
def test_authenticate_that_fails_is_a_line(logged: Logged):
    def authenticate(token: Any, peer: Any) -> bool:
        raise OSError("the directory is down")

    with logged.serving(authenticate=authenticate), pytest.raises(Exception, match="could not be"):
        logged.runtime.connect(logged.address)
    (line,) = logged.lines(logging.ERROR)
    assert re.fullmatch(r"127\.0\.0\.1:\d+: authenticate\(\) failed", line)


class Stuck:
    """A handler that nothing ends but the test."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def wait(self) -> None:
        self.opened.wait(30)


def test_handler_that_keeps_a_thread_in_vain_is_a_line(logged: Logged):
    if logged.runtime.name == "gevent":
        pytest.skip("a greenlet can be killed")
    stuck = Stuck()
    config = ServerConfig(handling_timeout=0.1)
    with logged.calling(config=config) as client:
        logged.server.register(stuck)
        with pytest.raises(DeadlineExceeded):
            client.call("Stuck.wait")
        until(lambda: logged.server.stats["abandoned"])
        (line,) = logged.lines(logging.WARNING)
        assert line.startswith("Stuck.wait is still running after its call ended (")
        assert line.endswith("; abandoned handlers hold 1 threads")
        stuck.opened.set()
        until(lambda: not logged.server.stats["running"])


# The access log


@pytest.mark.feature(LINES)
def test_access_log_is_off_unless_asked_for(logged: Logged):
    with logged.calling() as client:
        client.call("Basic.echo", 1)
    assert logged.lines(logging.INFO, ".access") == []


@pytest.mark.feature(LINES)
def test_access_log_has_one_line_for_each_call_that_ended(logged: Logged):
    with logged.calling(access_log=True) as client:
        client.call("Basic.echo", 1)
        client.call("Basic.zeros", 1000)
        client.notify("Basic.echo", 1)
        for method in ("Failing.own_code", "Failing.unencodable", "No.such"):
            with pytest.raises(CallError):
                client.call(method)
        lines = sorted(logged.access(6))
    assert [line.rpartition(" ")[0] for line in lines] == [
        "Basic.echo ok",
        "Basic.echo ok",
        "Basic.zeros ok",
        "Failing.own_code teapot",
        "Failing.unencodable internal",
        "No.such unimplemented",
    ]
    assert lines[0].endswith(" 0")  # one way
    assert lines[1:3] == ["Basic.echo ok 17", "Basic.zeros ok 1016"]


@pytest.mark.feature(LINES)
def test_access_log_tells_how_calls_ended_that_got_no_result(logged: Logged, key):
    config = ServerConfig(handling_timeout=0.3)
    with logged.calling(access_log=True, config=config, max_queued=1, max_concurrency=1) as client:
        given_up = client.start("Gate.wait", key)
        assert logged.counters.wait(f"started:{key}", 1, 10) == 1
        queued = client.start("Gate.wait", key)
        until(lambda: logged.server.stats["queued"] == 1)
        with pytest.raises(ResourceExhausted):
            client.call("Basic.echo")
        given_up.cancel()
        assert given_up.outcome() == GAVE_UP
        assert isinstance(queued.outcome(), DeadlineExceeded)
        lines = logged.access(3)
        until(lambda: not logged.server.stats["running"])
    assert [line.rpartition(" ")[0] for line in lines] == [
        "Basic.echo resource_exhausted",
        "Gate.wait cancelled",
        "Gate.wait deadline_exceeded",
    ]


@pytest.mark.feature(LINES)
def test_connection_that_is_lost_ends_the_calls_in_the_access_log(logged: Logged, key):
    with logged.serving(access_log=True):
        client = logged.runtime.connect(logged.address)
        client.start("Gate.wait", key)
        assert logged.counters.wait(f"started:{key}", 1, 10) == 1
        client.close()
        (line,) = logged.access(1)
        assert line in ("Gate.wait cancelled 0", "Gate.wait unavailable 0")
        until(lambda: not logged.server.stats["running"])


@pytest.mark.feature(LINES)
def test_nobody_can_forge_a_line_of_the_access_log(logged: Logged):
    forged = "No.such ok 0.001 ms 1 bytes\nERROR rpc: \x1b[31m\u2028\u202e"
    with logged.calling(access_log=True) as client:
        with pytest.raises(CallError):
            client.call(forged)
        (line,) = logged.access(1)
    assert line.rpartition(" ")[0] == f"{forged!r} unimplemented"
    assert line.isprintable()


@pytest.mark.feature(LINES)
def test_access_log_has_one_line_for_each_http_request(logged: Logged):
    with logged.serving(access_log=True):
        answer = logged.get("/nothing?a='")
        (line,) = logged.access(1)
    body = answer.partition(b"\r\n\r\n")[2]
    assert line == f'"GET /nothing?a=\'" 404 {len(body)}'


class Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise OSError("no space left for a line")


@pytest.fixture(params=["handler", "filter"])
def broken_log(request: pytest.FixtureRequest, logged: Logged) -> Iterator[None]:
    """A handler or a filter of the application that raises, on all lines of the server."""
    log, broken = logging.getLogger(logged.name), Broken()
    access = logging.getLogger(f"{logged.name}.access")
    if request.param == "handler":
        log.addHandler(broken)
        yield
        log.removeHandler(broken)
    else:
        for one in (log, access):
            one.addFilter(broken.emit)  # type: ignore[arg-type]
        yield
        for one in (log, access):
            one.removeFilter(broken.emit)  # type: ignore[arg-type]


@pytest.mark.fault(90)
@pytest.mark.fault(137)
@pytest.mark.feature("A log that raises costs no answer, no place and no connection")
def test_log_that_raises_costs_nothing(logged: Logged, broken_log, capsys):
    with logged.calling(max_concurrency=2, access_log=True) as client:
        for _ in range(5):
            with pytest.raises(CallError) as caught:
                client.call("Failing.bug")
            assert caught.value.code == "unknown"
        assert client.call("Basic.echo", "on") == "on"
        until(lambda: logged.server.stats["running"] == 0)
    assert "no space left for a line" in capsys.readouterr().err


@pytest.mark.fault(69)
@pytest.mark.feature(LINES)
@pytest.mark.parametrize("name", ["GeneratorExit", "Own"])
def test_whatever_a_handler_raises_is_one_error_line(logged: Logged, name: str):
    with logged.calling() as client:
        with pytest.raises(CallError, match=name) as caught:
            client.call("Failing.beyond", name)
        assert caught.value.code == "unknown"
        until(lambda: logged.lines(logging.ERROR))
        assert logged.lines(logging.ERROR) == ["Failing.beyond failed"]
        assert client.call("Basic.echo", "on") == "on"


def failing_codec(kind: type[BaseException]) -> Codec:
    """Return a codec that raises where it meets "decode" or "encode"."""

    def decode(data: bytes) -> Any:
        if b"decode" in data:
            raise kind
        return json.loads(data)

    def encode(value: Any) -> bytes:
        if value == "encode":
            raise kind
        return json.dumps(value).encode()

    return Codec("own", encode, decode)


OWN = Codec("own", lambda value: json.dumps(value).encode(), json.loads)


@pytest.mark.fault(69)
@pytest.mark.feature(LINES)
@pytest.mark.parametrize("kind", [Own, GeneratorExit, asyncio.CancelledError])
def test_whatever_code_of_the_application_raises_is_an_answer_and_one_error_line(
    logged: Logged, kind: type[BaseException], key: str
):
    def authenticate(token: str | None, peer: Any) -> bool:
        if token is None:
            raise kind
        return True

    def page(request: Any, now: float) -> Any:
        raise kind

    def leave() -> None:
        raise kind

    config = ServerConfig(codecs=(failing_codec(kind),), authenticate=authenticate)
    with logged.serving(config=config, max_concurrency=2):
        logged.server.register(logged.leaving(leave), "Leaving")
        logged.server.http.add("/page", page)
        with pytest.raises(HandshakeError, match="internal"):
            logged.runtime.connect(logged.address, codec=OWN)
        assert logged.get("/page").startswith(b"HTTP/1.1 500 ")
        with logged.runtime.connect(logged.address, codec=OWN, token="t") as client:
            for what in ("decode", "encode"):
                with pytest.raises(Internal):
                    client.call("Basic.echo", what)
            call = client.start("Leaving.wait", key)
            assert logged.counters.wait(f"started:{key}", 1, 10) == 1
            call.cancel()
            assert call.outcome() == GAVE_UP
            until(lambda: logged.server.stats["running"] == 0)
            assert client.call("Basic.echo", "on") == "on"
    first, *others = logged.lines(logging.ERROR)
    assert first.endswith(": authenticate() failed")
    assert others == [
        "GET /page failed",
        "Basic.echo: its arguments could not be decoded",
        "Basic.echo failed",
        "Leaving.wait: a callback of on_cancel() failed",
    ]


FORGED = "x\n2026-01-01 ERROR rpc: forged \x1b[31m\x9b\u202e\u2028" + "y" * 2000


class Blaming:
    """Fails with what a peer sent in the text of its exception."""

    def blame(self, text: str) -> None:
        raise ValueError(text)


def as_written(record: logging.LogRecord) -> str:
    return logging.Formatter("%(levelname)s %(name)s: %(message)s").format(record)


@pytest.mark.fault(144)
@pytest.mark.feature(LINES)
@pytest.mark.parametrize("text", ["plain", FORGED])
def test_text_of_a_peer_in_a_traceback_forges_no_line_and_steers_no_terminal(
    logged: Logged, caplog: pytest.LogCaptureFixture, text: str
):
    with logged.calling() as client:
        logged.server.register(Blaming())
        with pytest.raises(CallError):
            client.call("Blaming.blame", text)
        until(lambda: logged.lines(logging.ERROR))
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    first, *lines = as_written(record).split("\n")
    assert first == f"ERROR {logged.name}: Blaming.blame failed"
    assert all(line.isprintable() for line in lines)
    assert (lines[0][:2] == "  ") is (text == FORGED)
    assert not [line for line in lines if line.startswith("2026")]
    assert record.exc_info is not None  # for formatters of their own, and for what watches errors
    assert isinstance(record.exc_info[1], ValueError)


@pytest.mark.fault(144)
@pytest.mark.parametrize("count", [1, 3])
def test_texts_in_a_line_are_cut_and_escaped(caplog: pytest.LogCaptureFixture, count: int):
    for _ in range(count):
        log = get_log("rpc_tests")
    caplog.set_level(logging.INFO, "rpc_tests")
    log.info("%s: %d, %g s, %s", FORGED, 7, 0.5, OSError("a\r\n\x1b"))
    (line,) = caplog.messages
    assert line.isprintable()
    assert line.startswith("x\\n2026-01-01 ERROR rpc: forged \\x1b[31m\\x9b\\u202e\\u2028yyy")
    assert line.endswith(f"yyy... ({len(FORGED)} characters): 7, 0.5 s, a\\r\\n\\x1b")
    assert len(line) < 1200


@pytest.mark.fault(144)
@pytest.mark.parametrize("how", ["cause", "context", "group", "note", "long"])
def test_whatever_holds_a_text_in_a_traceback_it_is_shown_and_bounded(
    caplog: pytest.LogCaptureFixture, how: str
):
    evil = ValueError("a\x1b[2J")
    error: BaseException = ValueError("outer")
    if how == "cause":
        error.__cause__ = evil
    elif how == "context":
        error.__context__ = evil
        evil.__context__ = error  # nobody follows that for ever
    elif how == "group":
        error = ExceptionGroup("outer", [KeyError("inner"), evil])
    elif how == "note":
        error.add_note("a\x1b[2J")
    else:
        error = ValueError("z" * (1 << 20))
    get_log("rpc_tests").error("failed", exc_info=error)
    written = as_written(caplog.records[0])
    assert written.replace("\n", "").isprintable()
    assert ("zzz" if how == "long" else "a\\x1b[2J") in written
    assert len(written) < 40_000


@pytest.mark.fault(144)
def test_refusal_of_a_node_is_one_printable_line(
    client_backend: Runtime, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, package(client_backend.name))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        node = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with client_backend.balance(node) as client:
            call = client.spawn(lambda real: real.call("Basic.echo", timeout=20))
            peer, _ = listener.accept()
            with peer:
                peer.sendall(encode_refusal("unauthenticated", FORGED, ()))
                with pytest.raises(CallError):
                    call.result(20)
    # A thread that dials writes its line when it has let go of the lock: after the call, maybe.
    until(lambda: any("cannot be reached" in line for line in caplog.messages))
    (line,) = [line for line in caplog.messages if "cannot be reached" in line]
    assert line.isprintable()
    assert line.startswith(f"{node} cannot be reached: {node}: x\\n2026")

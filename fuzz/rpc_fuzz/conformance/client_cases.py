"""The cases for clients: a command that makes one call, and servers that test what it does.

The command calls `Echo.echo("hello")` at the address it is given, prints the result and exits with
0; if the call fails, it exits with something else.
"""

import shlex
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

from rpc_fuzz.wire import (
    ERROR,
    GOAWAY,
    NAMED,
    PING,
    PONG,
    RAW,
    REQUEST,
    RESPONSE,
    Frame,
    answer,
    frame,
    line,
    prefix,
)
from rpc_proto.wire.handshake import MAGIC

from .cases import Case
from .peer import Failure, Peer, Skip

__all__ = ["CLIENT_CASES", "Program"]

WORD = "hello"


class Program(NamedTuple):
    """The command to be examined; `{}` in it stands for the address, or the address comes last."""

    command: str
    timeout: float = 10.0

    def start(self, address: str) -> "subprocess.Popen[str]":
        """Run it."""
        words = shlex.split(self.command)
        given = [word.replace("{}", address) for word in words]
        if given == words:
            given.append(address)
        return subprocess.Popen(
            given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )


class Server(Peer):
    """A connection of the client, seen from the server."""

    def options(self) -> dict[str, Any]:
        """Return the client's option line, which must be right."""
        fields = self.line()
        wanted = {"magic": MAGIC, "version": 1}
        for name, value in wanted.items():
            if fields.get(name) != value or type(fields[name]) is not int:
                raise Failure(f"{name} is {fields.get(name)!r}, and not {value!r}")
        codec = fields.get("codec")
        if codec not in ("msgpack", "json"):
            raise Skip(f"has no case for the codec {codec!r}")
        super().__init__(self.sock, codec, self.timeout)
        self.limits = fields.get("limits") or {}
        return fields

    def accept(self, **changes: Any) -> None:
        """Read the options and accept."""
        fields = self.options()
        self.send(line(answer(codec=fields["codec"], **changes)))

    def request(self) -> Frame:
        """Wait for the call, which must be right."""
        got = self.expect(REQUEST)
        header = self.decode(got.header)
        if not isinstance(header, list) or not 1 <= len(header) <= 4 or header[0] != "Echo.echo":
            raise Failure(f"the header of the REQUEST is {header!r:.80}")
        if got.call_id != 1:
            raise Failure(f"the first call has the id {got.call_id}, and not 1")
        body = self.decode(got.body)
        if got.flags & RAW or got.flags & ~NAMED:
            raise Failure(f"the flags of the REQUEST are {got.flags}")
        if body != [WORD] and not got.flags & NAMED:
            raise Failure(f"the arguments are {body!r:.80}")
        return got

    def respond(self, call_id: int = 1) -> None:
        """Answer the call as it should be."""
        self.send(self.wire.response(call_id, WORD))


CLIENT_CASES: list[Case] = []


def case(section: str, says: str, works: bool) -> Callable[[Callable[..., None]], None]:
    """Add a case; its function plays the server, and `works` is whether the call succeeds."""

    def add(function: Callable[..., None]) -> None:
        def run(program: Program) -> None:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                listener.settimeout(program.timeout)
                process = program.start(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
                with process:
                    try:
                        sock, _ = listener.accept()
                        sock.settimeout(program.timeout)
                        with Server(sock, "json", program.timeout) as server:
                            function(server)
                            _check_exit(process, program.timeout, works)
                    finally:
                        process.kill()

        CLIENT_CASES.append(Case(section, function.__name__, says, run))

    return add


def _check_exit(process: "subprocess.Popen[str]", timeout: float, works: bool) -> None:
    try:
        out, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise Failure(f"the program still runs after {timeout:g} s") from None
    code = process.returncode
    if code < 0:
        raise Failure(f"the program was ended by {signal.Signals(-code).name}")
    if works and (code or WORD not in out):
        raise Failure(f"exit code {code}, it said {out.strip()!r:.80}, {errors.strip()!r:.200}")
    if not works and not code:
        raise Failure(f"exit code 0, though the call failed; it said {out.strip()!r:.80}")


# Option handshake


@case("Option handshake", "a right answer leads to a right call", works=True)
def right_answer(server: Server) -> None:
    server.accept()
    server.request()
    server.respond()


@case(
    "Option handshake",
    "unknown keys, features and white space of the answer are ignored",
    works=True,
)
def odd_answer(server: Server) -> None:
    fields = server.options()
    said = line(answer(codec=fields["codec"], later=[{}], features=["later"])).strip()
    server.send(said.replace(b",", b" ,\t") + b" \r\n")
    server.request()
    server.respond()


@case("Option handshake", "the answer may come a byte at a time", works=True)
def answer_byte_by_byte(server: Server) -> None:
    fields = server.options()
    said = line(answer(codec=fields["codec"]))
    server.send(*(said[at : at + 1] for at in range(len(said))))
    server.request()
    server.respond()


@case("Option handshake", "no frame is sent before the answer", works=True)
def nothing_before_the_answer(server: Server) -> None:
    fields = server.options()
    if server.has_more_within(0.3):
        raise Failure("something was sent before the answer")
    server.send(line(answer(codec=fields["codec"])))
    server.request()
    server.respond()


@case("Option handshake", "a refusal fails the call, and the client closes", works=False)
def refused(server: Server) -> None:
    server.options()
    error = {"code": "unauthenticated", "message": "who are you?"}
    server.send(line({"magic": MAGIC, "error": error}))
    server.expect_end()


@case("Option handshake", "a malformed answer makes the client close", works=False)
def malformed_answer(server: Server) -> None:
    server.options()
    server.send(b'{"magic":1380991824,"version":1,"version":1}\n')
    server.expect_end()


@case("Option handshake", "another version makes the client close", works=False)
def answer_of_another_version(server: Server) -> None:
    fields = server.options()
    server.send(line(answer(codec=fields["codec"], version=2)))
    server.expect_end()


@case("Option handshake", "another codec makes the client close", works=False)
def answer_in_another_codec(server: Server) -> None:
    fields = server.options()
    other = "json" if fields["codec"] == "msgpack" else "msgpack"
    server.send(line(answer(codec=other)))
    server.expect_end()


@case("Option handshake", "an endless answer makes the client close", works=False)
def endless_answer(server: Server) -> None:
    server.options()
    server.send(b"{" + b" " * 5000)
    server.expect_end()


# Frames


@case("Frames", "unknown types from 0x80 on are ignored", works=True)
def ignorable_of_server(server: Server) -> None:
    server.accept()
    server.send(frame(0x80, 5, b"h", b"b", 0xFF))
    server.request()
    server.send(frame(0xFF, 1))
    server.respond()


@case("Frames", "an answer that comes a byte at a time is the same answer", works=True)
def response_byte_by_byte(server: Server) -> None:
    server.accept()
    server.request()
    data = server.wire.response(1, WORD)
    server.send(*(data[at : at + 1] for at in range(len(data))))


@case("Frames", "any other unknown type is a violation", works=False)
def unknown_type_of_server(server: Server) -> None:
    server.accept()
    server.request()
    server.send(frame(0x0B, 1))
    server.expect_violation()


@case("Frames", "a type that only a client sends is a violation", works=False)
def request_of_server(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.request(1, "Echo.echo"))
    server.expect_violation()


@case(
    "Frames", "a body over the limit of the client is a violation, found at the prefix", works=False
)
def body_over_the_limit_of_client(server: Server) -> None:
    server.accept()
    limit = server.limits.get("body", 2**32 - 1)
    if limit == 2**32 - 1:
        raise Skip("the client states no limit")
    server.request()
    server.send(prefix(RESPONSE, 0, 0, limit + 1, 1))
    server.expect_violation()


# Calls


@case("Calls", "an ERROR fails the call", works=False)
def failed(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.error(1, "not_found", "no such thing"))


@case("Calls", "an ERROR of an unknown code fails the call", works=False)
def failed_in_another_way(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.error(1, "out_of_tea", "sorry", {"kettle": None}))


@case("Calls", "metadata of an answer do no harm", works=True)
def answer_with_metadata(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.response(1, WORD, metadata={"k": "v"}))


@case("Calls", "a second answer is ignored", works=True)
def answered_twice(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.response(1, WORD) + server.wire.response(1, "another"))


@case("Calls", "a result that cannot be decoded fails the call", works=False)
def undecodable(server: Server) -> None:
    server.accept()
    server.request()
    server.send(frame(RESPONSE, 1, b"", b"\xc1\xff"))


@case("Calls", "an answer to an id that was never sent is a violation", works=False)
def answer_to_nobody(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.response(99, WORD))
    server.expect_violation()


@case("Calls", "a stream that ends before the answer fails the call", works=False)
def ended(server: Server) -> None:
    server.accept()
    server.request()
    server.end()


@case("Calls", "a stream that ends inside the answer fails the call", works=False)
def ended_inside(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.response(1, WORD)[:-1])
    server.end()


# Errors


@case("Errors", "an ERROR whose body is no array of three fails the call", works=False)
def odd_error(server: Server) -> None:
    server.accept()
    server.request()
    server.send(frame(ERROR, 1, b"", server.wire.encode([1])))


# Liveness


@case("Liveness", "a PING is answered with a PONG of the same id", works=True)
def pinged(server: Server) -> None:
    server.accept()
    server.request()
    server.send(frame(PING, 4711))
    got = server.frame()
    if got is None or got.type != PONG or got.call_id != 4711:
        raise Failure(f"expected the PONG, and not {got!r:.100}")
    server.respond()


# Shutdown


@case("Shutdown", "a call above the id of a GOAWAY fails, and the client closes", works=False)
def went_away(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.goaway(0))
    while (got := server.frame()) is not None:
        if got.type not in (GOAWAY, PING, PONG):
            raise Failure(f"a frame of type {got.type} came after the GOAWAY")


@case("Shutdown", "a call up to the id of a GOAWAY goes on", works=True)
def going_away(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.goaway(1))
    server.respond()


@case("Shutdown", "a GOAWAY for an id that was never sent is a violation", works=False)
def goaway_of_nobody(server: Server) -> None:
    server.accept()
    server.request()
    server.send(server.wire.goaway(99))
    server.expect_violation()

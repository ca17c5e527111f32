"""docs/protocol.md, sentence by sentence: what each says is shown by a test.

A test quotes the sentences that it shows; a sentence that no test quotes explains something, and is
listed here. What is quoted has to stand on the page.
"""

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent

_TEXT = (HERE.parents[1] / "docs" / "protocol.md").read_text()
PAGE = " ".join(re.sub(r"```.*?```", "", _TEXT, flags=re.S).split())
QUOTED = [
    ast.literal_eval(sentence)
    for path in sorted(HERE.glob("test_protocol_*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "page"
    for sentence in node.args
]
_SENTENCE = re.compile(r"[^.|]+?(?:\.(?= )|\||$)")  # a cell of a table is one, too

# Sentences that define a word or explain a rule, by how they begin; and what other tests show.
EXPLANATIONS = (
    "## Connections A connection is a reliable",
    "The end that opened it is the *client*",
    "The other is the *server*",
    "The client sends its options:",
    "1380991824 (0x52504350",
    "the codec that the client named",
    "A feature is an optional part",
    "## Frames A frame is a prefix",
    "[answer](#headers) or empty",
    "[last call served](#shutdown)",
    "## Codecs A codec turns values",
    "Its name is agreed in the handshake",
    "- `msgpack`: the MessagePack format.",
    "The service is the part before the last dot.",
    "## Calls A call begins with a REQUEST.",
    "the caller gave the call up",
    "the handler failed in a way that has no code",
    "`not_found`, `already_exists`",
    "the answer could not be produced",
    "The names are those of gRPC",
    "## Shutdown GOAWAY announces",
    "## States Both ends go through the same states.",
    # tests/proxy
    "Through an HTTP proxy it is the same",
    # test_http_smuggling.py
    "1, to the letter, or over 8192 bytes of extensions and trailers.",
    # test_http_server.py
    "Requests wait their turn: no more than 32 KiB",
    "A client that does not read its answers is served no further",
    # the drivers' own tests
    "Over TLS a server may take the end",
    # tests/conformance/test_violations.py
    "A server that closes first ends its own direction",
)


@pytest.mark.parametrize("sentence", QUOTED)
def test_quoted_sentence_stands_on_the_page(sentence: str) -> None:
    assert sentence in PAGE


def test_every_sentence_of_the_page_is_quoted_by_a_test_or_explains() -> None:
    quoted = bytearray(len(PAGE))
    for sentence in QUOTED:
        for found in re.finditer(re.escape(sentence), PAGE):
            quoted[found.start() : found.end()] = b"\1" * len(sentence)
    start = PAGE.index("## Connections")
    missed = []
    for found in _SENTENCE.finditer(PAGE, start, PAGE.index("## Test vectors")):
        sentence = found.group().strip()
        seen = any(quoted[found.start() : found.end()])
        if not seen and len(sentence) > 25 and not sentence.startswith(EXPLANATIONS):
            missed.append(sentence)
    assert not missed, f"no @page(...) of a test beside this one quotes {missed}"


def test_every_must_violation_and_ignore_of_the_page_is_quoted() -> None:
    rest = PAGE[PAGE.index("## Connections") :]
    for sentence in QUOTED:
        rest = rest.replace(sentence, "")
    assert re.findall(r".{60}\b(?:must|violations?|ignore[ds]?)\b.{60}", rest) == []

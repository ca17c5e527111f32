"""What `help()` says of configuration classes."""

import pydoc

import pytest

from rpc_proto import ClientConfig, ServerConfig
from rpc_proto.http import Pages
from rpc_proto.settings import Settings


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig, Pages])
def test_help_has_every_field_with_its_default_and_what_it_means(kind: type[Settings]):
    text = pydoc.render_doc(kind, renderer=pydoc.plaintext)
    bases = [base for base in kind.__mro__ if base not in (Settings, object)]
    names = [name for base in bases for name in base.__annotations__]
    assert names
    lines = [line.removeprefix(" |").strip() for line in text.splitlines()]
    for name in names:
        at = lines.index(f"{name} = {getattr(kind, name)!r}")
        assert len(lines[at + 1]) > 15, name


@pytest.mark.parametrize("kind", [ClientConfig, ServerConfig])
def test_help_says_in_which_unit_numbers_are(kind: type[Settings]):
    paragraphs = (kind.__doc__ or "").split("\n\n")
    numbers = [
        p for p in paragraphs if " = " in p and p.split(" = ")[1].split("\n")[0][0].isdigit()
    ]
    assert len(numbers) > 10
    for paragraph in numbers:
        text = paragraph.lower()
        assert any(unit in text for unit in ("byte", "second", "calls")), paragraph


def test_help_without_the_source_has_the_fields(monkeypatch: pytest.MonkeyPatch):
    def missing(_: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", missing)
    assert "\nmax_queued_calls = 65536" in (ClientConfig.__doc__ or "")

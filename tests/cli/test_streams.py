"""`rpc-proto call` with streams: items as they come, and items from standard input."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    """lines(text) gives a file with that text, to be standard input."""
    opened = []

    def make(text: str) -> Any:
        path = tmp_path / f"input-{len(opened)}"
        path.write_text(text)
        opened.append(path.open("rb"))
        return opened[-1]

    yield make
    for file in opened:
        file.close()


def test_items_of_a_server_stream_are_printed_as_they_come(run: Any, server: str) -> None:
    assert run("call", server, "Lines.tail", '"log"', "n=2") == (0, '"log 0"\n"log 1"\n', "")
    assert run("call", server, "Lines.tail", '"log"', "n=0") == (0, "", "")


def test_json_is_one_line_for_each_item(run: Any, server: str) -> None:
    code, output, errors = run("call", server, "Probe.show", "1", "--json")
    assert (code, output, errors) == (0, "[[1], {}]\n", "")


def test_items_of_a_client_stream_are_lines_of_stdin(run: Any, server: str, lines: Any) -> None:
    given = lines("1\n2\n\n39\n")
    assert run("call", server, "Lines.total", stdin=given) == (0, "42\n", "")


def test_items_go_both_ways(run: Any, server: str, lines: Any) -> None:
    given = lines('"a"\n"b"')
    assert run("call", server, "Lines.shout", stdin=given) == (0, '"A"\n"B"\n', "")


def test_line_that_is_no_value_is_named(run: Any, server: str, lines: Any) -> None:
    code, output, errors = run("call", server, "Lines.total", stdin=lines("1\nword\n"))
    assert (code, output) == (2, "")
    assert errors.startswith("rpc-proto: line 2 of standard input: argument 'word' is not JSON")


def test_bad_item_of_stdin_is_named_by_its_position(run: Any, server: str, lines: Any) -> None:
    code, output, errors = run("call", server, "Lines.total", stdin=lines('1\n"two"\n'))
    assert (code, output) == (1, "")
    assert "item 2 of Lines.total is bad: Expected `int`, got `str`" in errors


def test_timeout_covers_the_whole_stream(start: Any, server: str) -> None:
    command = start("call", server, "Lines.tail", '"log"', "1000000000", "--timeout", "1")
    code, output, errors = command.end()
    assert code == 1
    assert output.startswith('"log 0"\n')
    assert "deadline_exceeded" in errors

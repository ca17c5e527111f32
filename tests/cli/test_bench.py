"""`rpc-proto bench`: what it prints, where, and when it is cut short."""

import math
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.processes import COMMAND, ENVIRONMENT, PATIENCE
from rpc_cli.output.latency import Latencies, format_seconds, histogram_lines

SHORT = ("--seconds", "0.5", "--concurrency", "8")


def number(pattern: str, output: str) -> float:
    match = re.search(pattern, output)
    assert match is not None, output
    return float(match[1].replace(",", ""))


def test_piped_results_are_plain_and_whole(run: Any, server: str) -> None:
    code, output, errors = run(
        "bench", server, "Arith.add", "1", "2", "--seconds", "1", env={"TERM": "xterm-256color"}
    )
    assert (code, errors) == (0, "")
    assert "\x1b" not in output
    calls = number(r"calls +([\d,]+) in", output)
    seconds = number(r"in ([\d.]+) s\n", output)
    assert number(r"rate +([\d,]+) calls/s", output) == pytest.approx(calls / seconds, rel=0.02)
    assert re.search(r"latency +p50 .+ p90 .+ p99 .+ p99\.9 .+ max ", output)
    assert "errors      none" in output
    bars = re.findall(r"\u2588 +([\d,]+)\n", output)
    assert sum(int(count.replace(",", "")) for count in bars) == calls


def on_a_terminal(term: str, *arguments: str) -> tuple[int, str]:
    """Run the command with all three streams on a terminal of that kind."""
    here, there = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=there,
        stdout=there,
        stderr=there,
        env={**ENVIRONMENT, "TERM": term},
    )
    os.close(there)
    output = b""
    try:
        while data := os.read(here, 65536):
            output += data
    except OSError:  # the last process has closed it
        pass
    finally:
        os.close(here)
    return process.wait(timeout=PATIENCE), output.decode()


def test_terminal_gets_a_progress_bar(server: str) -> None:
    code, output = on_a_terminal("xterm", "bench", server, "Arith.add", "1", "2", *SHORT)
    assert code == 0
    assert "\x1b[" in output
    assert "rate" in output


def test_dumb_terminal_gets_no_escape_codes(server: str) -> None:
    code, output = on_a_terminal("dumb", "bench", server, "Arith.add", "1", "2", *SHORT)
    assert code == 0
    assert "\x1b" not in output
    assert "rate" in output


def test_stream_without_block_characters_gets_ascii_bars(run: Any, server: str) -> None:
    code, output, _ = run(
        "bench", server, "Arith.add", "1", "2", *SHORT, env={"PYTHONIOENCODING": "ascii"}
    )
    assert code == 0
    assert "####" in output


def test_payload_goes_as_one_bytes_argument_over_several_connections(run: Any, server: str) -> None:
    options = ("--payload", "1000", "--connections", "2", "--codec", "json", *SHORT)
    code, output, _ = run("bench", server, "Probe.raw", *options)
    assert code == 0
    assert "on 2 connections" in output
    assert "errors      none" in output


def test_errors_are_counted_by_code(run: Any, server: str) -> None:
    code, output, _ = run("bench", server, "Probe.fail", "--seconds", "0.3")
    assert code == 1
    assert "calls       0 in" in output
    assert number(r"errors +not_found ([\d,]+), the first: first line second line", output) > 0


def test_server_that_goes_away_ends_it_with_the_results_so_far(run: Any, start: Any) -> None:
    server = start("serve", "rpc_cli.demo.services:Slow", "--listen=tcp://127.0.0.1:0")
    address = server.address()
    bench = start("bench", address, "Slow.work", '"job"', "0.001", "--seconds", "600")
    assert run("call", address, "Slow.outcome", '"job"') == (0, '"finished"\n', "")
    server.signal(signal.SIGTERM)
    code, output, errors = bench.end()
    assert (code, errors) == (0, "")
    assert "lost        64 callers" in output
    assert number(r"calls +([\d,]+) in", output) > 0


def test_ctrl_c_prints_the_results_so_far(run: Any, start: Any, server: str) -> None:
    bench = start("bench", server, "Slow.work", '"benched"', "0.001", "--seconds", "600")
    assert run("call", server, "Slow.outcome", '"benched"') == (0, '"finished"\n', "")
    bench.signal(signal.SIGINT)
    code, output, errors = bench.end()
    assert (code, errors) == (130, "")
    assert number(r"rate +([\d,]+) calls/s", output) > 0


def test_payload_and_arguments_exclude_each_other(run: Any, server: str) -> None:
    code, _, errors = run("bench", server, "Probe.raw", "1", "--payload", "10")
    assert (code, errors.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", [["bench", "tcp://127.0.0.1:1", "A.b"], ["demo"]])
def test_without_rich_the_extra_is_named(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "rich.py").write_text("raise ImportError('not installed')\n")
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    done = subprocess.run(
        [*COMMAND, *command],
        env={**ENVIRONMENT, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'rpc-proto[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_percentiles_are_right_within_a_hundredth() -> None:
    latencies = Latencies()
    for step in range(1, 10_001):
        latencies.add(step / 1e6)
    for percent in (0.01, 50, 90, 99, 99.9, 100):
        assert latencies.percentile(percent) == pytest.approx(percent / 1e4, rel=0.01)
    assert latencies.max == 0.01
    assert sum(count for _, _, count in latencies.histogram(10)) == 10_000


def test_percentile_of_one_measurement_is_that_one() -> None:
    latencies = Latencies()
    latencies.add(0.123)
    assert {latencies.percentile(percent) for percent in (50, 99.9)} == {0.123}
    assert len(histogram_lines(latencies, bar="#")) == 1


def test_memory_does_not_grow_with_the_number_of_measurements() -> None:
    latencies = Latencies()
    for step in range(100_000):
        latencies.add(0.001 * math.exp(step % 1000 / 1000))
    assert len(latencies._buckets) < 300


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0000123, "12 us"), (0.00123, "1.23 ms"), (0.123, "123 ms"), (12.3, "12.30 s")],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text

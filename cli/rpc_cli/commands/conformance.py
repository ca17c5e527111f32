"""`rpc-proto conformance`: whether a server or a client does what docs/protocol.md says."""

import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rpc_cli.output.errors import FAILED
from rpc_cli.setup.connect import client_tls

__all__ = ["conformance"]


def conformance(options: Namespace) -> int:
    """Run the cases and print what came out; 1 if one has failed."""
    from rpc_fuzz.conformance.cases import CASES
    from rpc_fuzz.conformance.client_cases import CLIENT_CASES, Program
    from rpc_fuzz.conformance.peer import Target
    from rpc_fuzz.conformance.report import Result, as_json, as_junit, as_table, run_cases

    chosen: list[Any]
    subject: Any
    if options.client is not None:
        chosen = CLIENT_CASES
        subject = Program(options.client, options.timeout)
    else:
        chosen = CASES
        subject = Target(
            options.address,
            options.codec or "msgpack",
            options.token,
            options.echo,
            options.echo_stream,
            options.timeout,
            client_tls(options),
        )
        subject.dial().close()  # its error is that of the command
    if options.case:
        chosen = [case for case in chosen if case.name in options.case]

    def tell(result: Result) -> None:
        if options.json:
            return
        mark = {"passed": "ok", "failed": "FAILED", "skipped": "skipped"}[result.outcome]
        text = f": {result.text}" if result.text else ""
        print(f"{mark:8}{result.section}: {result.says} ({result.name}){text}", flush=True)

    run: Callable[[Any], None] = lambda case: case.run(subject)  # noqa: E731
    results = run_cases(chosen, run, tell)
    if options.json:
        print(as_json(results))
    else:
        print(f"\n{as_table(results)}")
    if options.junit is not None:
        Path(options.junit).write_text(as_junit(results))
    if not any(result.outcome == "passed" for result in results):
        print("rpc-proto: no case has passed", file=sys.stderr)
        return FAILED
    return FAILED if any(result.outcome == "failed" for result in results) else 0

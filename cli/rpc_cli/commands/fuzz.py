"""`rpc-proto fuzz`: sends a server what is right, and what is nearly right."""

import sys
from argparse import Namespace
from pathlib import Path

from rpc_cli.output.errors import FAILED, CommandError
from rpc_cli.setup.connect import client_tls

__all__ = ["fuzz"]


def fuzz(options: Namespace) -> int:
    """Fuzz until the time is over, or something fails; 1 if it did."""
    try:
        from rpc_fuzz.live import attack
    except ImportError as error:
        raise CommandError("needs: pip install 'rpc-proto[fuzz]'") from error
    from rpc_fuzz.conformance.peer import Target

    target = Target(
        options.address,
        options.codec or "msgpack",
        options.token,
        timeout=options.timeout,
        tls=client_tls(options),
    )
    target.dial().close()  # its error is that of the command
    shown = sys.stderr.isatty()

    def tell(inputs: int) -> None:
        if shown:
            print(f"\r{inputs} inputs", end="", file=sys.stderr, flush=True)

    found = attack(target, options.seconds, options.seed, tell)
    if shown:
        print("\r", end="", file=sys.stderr)
    rate = found.inputs / found.seconds if found.seconds else 0.0
    print(
        f"{found.inputs} inputs in {found.seconds:.1f} s, {rate:.0f} a second, seed {options.seed}"
    )
    if found.failure is None:
        print("nothing has failed")
        return 0
    print(f"FAILED: {found.failure}\n{len(found.data)} bytes: {found.data.hex()}")
    if found.pieces:
        print(f"in pieces of {', '.join(map(str, found.pieces))} bytes, and the rest")
    if options.output is not None:
        Path(options.output).write_bytes(found.data)
    return FAILED

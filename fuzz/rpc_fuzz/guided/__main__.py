"""Run a target under atheris; libFuzzer's options follow, such as -max_total_time=60."""

import sys
import warnings

import atheris

with atheris.instrument_imports(include=["rpc_proto"]), warnings.catch_warnings():
    from rpc_fuzz.guided.targets import TARGETS


def main() -> None:
    """Fuzz the target that is named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m rpc_fuzz.guided {'|'.join(TARGETS)} [CORPUS] [OPTIONS]")
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()

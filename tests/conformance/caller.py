"""A client in a process of its own, to be killed.

    python -m conformance.caller BACKEND ADDRESS KEY

It waits at a gate of the server for ever.
"""

import math
import sys

from conformance.runtimes import RUNTIMES

if __name__ == "__main__":
    backend, address, key = sys.argv[1:]
    client = RUNTIMES[backend]().connect(address)
    client.start("Gate.wait", key, timeout=math.inf).outcome()

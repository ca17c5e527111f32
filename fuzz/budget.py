"""How many examples each fuzz target runs.

FUZZ_EXAMPLES is the number of examples of all framing and handshake targets together; each takes
its share with `spread`. Reports are reproducible: hypothesis prints a blob for each failure.
"""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "4000"))
SHARES = 33  # targets that divide EXAMPLES among themselves


def spread(share: float = 1.0, least: int = 25) -> settings:
    """The settings of a target that takes `share` of one of the SHARES parts of EXAMPLES."""
    return settings(
        max_examples=max(least, int(EXAMPLES * share / SHARES)),
        deadline=None,
        print_blob=True,
        # How long drawing takes says nothing on a machine that is busy with other things.
        suppress_health_check=[HealthCheck.too_slow],
    )

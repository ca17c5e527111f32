"""Write docs/backends.md: what each backend does, from a run of tests/conformance.

FEATURE_MATRIX=matrix.json pytest tests/conformance -n 2
python docs/matrix.py matrix.json
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parent / "backends.md"
BACKENDS = ("asyncio", "gevent", "blocking")
ENDS = ("client", "server")

HEAD = """\
# The three backends

They have the same names, arguments, defaults and errors; only `await` differs. One suite proves it:
each case below is written once and runs for every pair of a client's and a server's backend.

"yes" means that all tests of the feature passed with the backend as client and as server, whatever
the other end was; "no" that some failed, and "not with" names the only other ends that they failed
with; "-" that the backend has no such thing, or none was installed. Features of one end say so.
This page is generated: `python docs/matrix.py` (see its first lines).
"""

DIFFERENCES = """\
## Differences that stay

- A handler is `async def` in asyncio, where `def` runs in a thread pool, or in place if it is
  marked `quick`. In gevent it is `def`, in a greenlet; in blocking `def`, in a thread pool.
- A cancelled handler gets `CancelledError` where it waits in asyncio, and `GreenletExit` in
  gevent. In blocking it keeps running: it can check `current_call().cancelled`, or use
  `on_cancel`.
- For many calls at once, use tasks in asyncio, greenlets in gevent, and in blocking threads that
  share the client. `start` starts a call and returns at once.
- To cancel a call, cancel its task in asyncio or kill its greenlet in gevent; a call of `start`
  has `cancel()`.
- A blocking client does not read between calls, so it asks the server for no pings, and notices
  the end of its connection at its next call. The other two notice it at once.

A thread cannot be killed. In the blocking server, and for `def` handlers of the asyncio server,
the answer is sent at the deadline while the handler may keep running: it keeps its place in the
pool, and `stats["abandoned"]` counts it until it returns. The same is true of a handler in
asyncio or gevent that swallows its cancellation; `stats["running"]` counts it.

An asyncio client belongs to its event loop, a gevent client to the hub of its thread; any number
of threads may share a blocking client. None of them survives a fork: connect again in the child.
"""


def summary(entries: list[dict[str, str]], backend: str) -> str:
    """Say how a feature did with a backend: as both ends, or as the one that matters."""
    said = {
        end: _word([entry for entry in entries if entry.get(end) == backend], other)
        for end, other in zip(ENDS, reversed(ENDS), strict=True)
        if any(end in entry for entry in entries)
    }
    if len(said) == len(ENDS) and len(set(said.values())) == 1:
        return said["client"]
    return ", ".join(f"{end}: {word}" for end, word in said.items())


def _word(entries: list[dict[str, str]], other: str) -> str:
    if not entries:
        return "-"
    failed = [entry for entry in entries if entry["outcome"] != "passed"]
    if not failed:
        return "yes"
    partners = {entry.get(other) for entry in failed}
    if None in partners or partners == {entry[other] for entry in entries if other in entry}:
        return "no"
    return f"not with {', '.join(sorted(filter(None, partners)))}"


def table(record: list[dict[str, str]]) -> str:
    """Return the features as rows of a table, in alphabetical order."""
    features: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for entry in record:
        features[entry["feature"]].append(entry)
    rows = [
        f"| {feature} | {len({entry['case'] for entry in entries})} | "
        + " | ".join(summary(entries, backend) for backend in BACKENDS)
        + " |"
        for feature, entries in sorted(features.items())
    ]
    return "\n".join(
        [
            f"| feature | cases | {' | '.join(BACKENDS)} |",
            f"|---|---|{'---|' * len(BACKENDS)}",
            *rows,
        ]
    )


def page(record: list[dict[str, str]]) -> str:
    """Return the whole page."""
    both = [entry for entry in record if set(ENDS) <= set(entry)]
    pairs = {(entry["client"], entry["server"]) for entry in both}
    ways = sorted({f"{entry['codec']} over {entry['transport']}" for entry in both})
    cases = len({entry["case"] for entry in record})
    ran = f"The run behind this table: {cases} cases, {len(record)} tests, {len(pairs)} pairs; "
    return "\n".join([HEAD, table(record), "", ran + f"{', '.join(ways)}.", "", DIFFERENCES])


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(Path(sys.argv[1]).read_text())))

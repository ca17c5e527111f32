"""gevent's monkey-patching: of all and before the import it works, otherwise it is refused."""

import pytest

from blocking_driver.support import run_python

pytest.importorskip("gevent")

PROGRAM = """
class Echo:
    def echo(self, value): return value

server = rpc_blocking.Server()
server.register(Echo())
address = server.start("tcp://127.0.0.1:0")
for kind in rpc_blocking.Client, rpc_gevent.Client:
    with kind.connect(address) as client:
        print(client.call("Echo.echo", 1))
server.stop(0)
"""
PATCH = "from gevent import monkey; monkey.patch_all()\n"
IMPORT = "import rpc_blocking, rpc_gevent\n"

LATE = """
for act in (
    lambda: rpc_blocking.Server().start("tcp://127.0.0.1:0"),
    lambda: rpc_blocking.Client.connect("tcp://127.0.0.1:1"),
):
    try:
        act()
    except rpc_proto.LocalProtocolError as error:
        print(error)
"""


@pytest.mark.fault(148)
def test_both_backends_work_in_one_hub_that_was_patched_first():
    assert run_python(PATCH + IMPORT + PROGRAM).split() == ["1", "1"]


@pytest.mark.fault(148)
def test_patching_after_the_import_is_refused():
    printed = run_python("import rpc_proto\n" + IMPORT + PATCH + LATE).splitlines()
    assert len(printed) == 2
    assert all("after rpc_blocking was imported: call gevent.monkey" in line for line in printed)


LATE_ASYNCIO = """
import asyncio, rpc_asyncio
from gevent import monkey; monkey.patch_all()

async def main():
    for act in (
        lambda: rpc_asyncio.Server().start("tcp://127.0.0.1:0"),
        lambda: rpc_asyncio.Client.connect("tcp://127.0.0.1:1"),
    ):
        try:
            await act()
        except Exception as error:
            print(error)

asyncio.run(main())
"""


@pytest.mark.fault(148)
def test_patching_after_the_import_is_refused_by_rpc_asyncio_too():
    printed = run_python(LATE_ASYNCIO).splitlines()
    assert len(printed) == 2
    assert all("after rpc_asyncio was imported: call gevent.monkey" in line for line in printed)


@pytest.mark.fault(148)
@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("patch_all(thread=False)", "gevent patched queue, select, socket, but not _thread"),
        ("patch_socket()", "gevent patched socket, but not _thread, threading, queue, select"),
        ("patch_thread()", "gevent patched _thread, threading, but not queue, select, socket"),
    ],
)
def test_patching_a_part_is_refused(patch, message):
    program = f"from gevent import monkey; monkey.{patch}\nimport rpc_proto\n{IMPORT}{LATE}"
    printed = run_python(program).splitlines()
    assert len(printed) == 2
    assert all(line.startswith(message) for line in printed)

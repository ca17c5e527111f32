"""gevent's monkey-patching: before the import of this package it works, after it, it is refused."""

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

"""Attacks on the memory of servers and clients, the short form of `make attacks`."""

from collections.abc import Iterator

import pytest
from attacking import MIB, Server, allow_descriptors
from memory_attacks import (
    CLIENT_ATTACKS,
    SERVER_ATTACKS,
    attack_client,
    attack_server,
    bound,
    greet,
)
from victim import BACKENDS

MOST = 512 * MIB  # above the idle process; an attack is not let go further
SCALE = 0.02
SECONDS = 1.0

# Each costs three processes; the others are of the long form.
HOSTILE_SERVERS = [name for name in CLIENT_ATTACKS if "results" in name or "text" in name]

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module", params=BACKENDS)
def server(request) -> Iterator[Server]:
    if request.param == "gevent":
        pytest.importorskip("gevent")
    allow_descriptors(4096)
    with Server(request.param, nodes=200, tls=True) as server:
        yield server


@pytest.mark.fault(65)
@pytest.mark.parametrize("name", SERVER_ATTACKS)
def test_server_holds_what_its_formula_says_and_serves_others_afterwards(server, name):
    kind = SERVER_ATTACKS[name]
    outcome = attack_server(server, kind, SCALE, MOST, SECONDS)
    assert outcome.alive
    greet(server)
    assert outcome.peak <= bound(server.backend, kind.connections, kind.tls)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", HOSTILE_SERVERS)
def test_client_outlives_a_hostile_server(backend, name):
    if backend == "gevent":
        pytest.importorskip("gevent")
    outcome = attack_client(backend, CLIENT_ATTACKS[name], MOST, SECONDS)
    assert outcome.alive

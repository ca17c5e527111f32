"""etcd that wants a password, or certificates at both ends."""

import time
from importlib import import_module
from typing import Any

import pytest

from etcd.actors import describe, is_registered
from etcd.conftest import FOUND
from rpc_discovery import EtcdDiscovery, PemFiles, SourceFailed
from rpc_proto import DeadlineExceeded
from rpc_testing import Etcd, TlsFiles
from support.certificates import Authority

A, B, C = (f"tcp://10.0.0.{n}:4000" for n in (1, 2, 3))
SECRET: Any = {"user": "alice", "password": "wonder land"}


@pytest.fixture(scope="module")
def _protected(version):
    with Etcd(FOUND[version], token_ttl=2) as etcd:
        etcd.protect("alice", "wonder land", "/rpc")
        yield etcd


@pytest.fixture
def protected(_protected):
    yield _protected
    _protected.start()


def reasons(actor):
    return [event.reason for event in actor.events if isinstance(event, SourceFailed)]


# Case 9


@pytest.mark.slow
def test_logins_that_are_over_are_renewed(protected, cast, recovered):
    registration = cast.register(protected.endpoints, A, ttl=9.0, **SECRET)
    watch = cast.watch(protected.endpoints, probe=3.0, **SECRET)
    watch.sees(A)
    token = watch.machine._token
    watch.until(lambda machine: machine._token not in (None, token))  # by its second probe
    registration.until(lambda machine: machine._lease_until > time.monotonic() + 8.0)
    protected.ctl("put", f"{cast.prefix}/Arith/{B}", describe(B).decode())
    recovered("a login is over", watch.sees(A, B))
    assert reasons(registration) == reasons(watch) == []


@pytest.mark.slow
def test_logins_are_renewed_when_etcd_was_restarted(protected, cast, recovered):
    registration = cast.register(protected.endpoints, A, **SECRET)
    watch = cast.watch(protected.endpoints, **SECRET)
    watch.sees(A)
    protected.members[0].kill()
    registration.until(lambda machine: True)
    protected.members[0].start()
    began = time.monotonic()
    protected.ctl("put", f"{cast.prefix}/Arith/{B}", describe(B).decode())
    watch.sees(A, B)
    watch.until(lambda machine: machine.stale_since is None)
    registration.tell("update", weight=2.0)
    registration.until(is_registered)
    recovered("a restart, with logins", time.monotonic() - began)
    assert all(len(view) for view in watch.views)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**SECRET, "prefix": "/secret"}, "permission denied"),
        ({"user": "alice", "password": "wrong"}, "authentication failed"),
        ({}, "user name is empty"),
    ],
    ids=["prefix", "password", "anonymous"],
)
def test_refusal_says_who_may_not_do_what(settings, reason, protected, cast):
    watch = cast.watch(protected.endpoints, **settings)
    watch.until(lambda machine: machine.error)
    prefix = settings.get("prefix", cast.prefix)
    who = "user 'alice'" if "user" in settings else "without a user"
    assert reason in reasons(watch)[0]
    assert f"({who}, prefix {prefix!r})" in reasons(watch)[0]
    assert not watch.machine.ready
    registration = cast.register(protected.endpoints, A, **settings)
    registration.until(lambda machine: machine.error)
    assert reason in reasons(registration)[0]


@pytest.mark.slow
def test_caller_is_told_why_no_node_is_known(protected, runtime, transport):
    discovery = EtcdDiscovery(protected.endpoints, prefix="/secret", transport=transport, **SECRET)
    package = import_module(f"rpc_{runtime.name}")
    client = runtime.do(lambda: package.BalancedClient(discovery))
    with pytest.raises(DeadlineExceeded, match=r"permission denied \(user 'alice'"):
        runtime.do(lambda: client.call("Arith.add", 1, 2, timeout=2.0))
    runtime.do(client.close)


def test_watch_that_is_refused_later_keeps_the_view_and_says_so(protected, cast):
    watch = cast.watch(protected.endpoints, probe=0.5, **SECRET)
    cast.register(protected.endpoints, A, **SECRET)
    watch.sees(A)
    protected.ctl("user", "revoke-role", "alice", "nodes")
    watch.until(lambda machine: machine.stale_since is not None)
    assert "permission denied" in watch.machine.stale_reason
    assert len(watch.machine.view) == 1
    protected.ctl("user", "grant-role", "alice", "nodes")
    watch.until(lambda machine: machine.stale_since is None)


def test_user_is_of_no_importance_where_nobody_logs_in(etcd, cast):
    cast.register(etcd.endpoints, A, **SECRET)
    cast.watch(etcd.endpoints, **SECRET).sees(A)


# Case 10


@pytest.fixture(scope="module")
def secured(version, authority):
    files = TlsFiles(
        str(authority.file),
        str(authority.server_file),
        str(authority.server_file),
        str(authority.client_file),
    )
    with Etcd(FOUND[version], tls=files) as etcd:
        yield etcd


def trusting(authority, transport, certificate=True):
    """Return what trusts the authority: a context, or files where there are other transports."""
    if transport is None:
        return authority.client_context(certificate=certificate)
    return PemFiles(str(authority.file), str(authority.client_file) if certificate else None)


def test_certificates_at_both_ends(secured, cast, authority, transport, recovered):
    ssl = trusting(authority, transport)
    registration = cast.register(secured.endpoints, A, ssl=ssl)
    watch = cast.watch(secured.endpoints, ssl=ssl)
    watch.sees(A)
    secured.members[0].kill()
    secured.members[0].start()
    began = time.monotonic()
    secured.ctl("put", f"{cast.prefix}/Arith/{B}", describe(B).decode())
    watch.sees(A, B)
    registration.until(is_registered)
    recovered("a restart, with TLS", time.monotonic() - began)
    registration.leave()
    watch.sees(B)


def test_authority_that_is_not_trusted_is_refused_and_named(secured, cast, transport, tmp_path):
    ssl = trusting(Authority(tmp_path), transport)
    watch = cast.watch(secured.endpoints, ssl=ssl)
    watch.until(lambda machine: machine.error)
    assert "certificate verify failed" in reasons(watch)[0].lower().replace("_", " ")


def test_client_without_a_certificate_is_refused(secured, cast, authority, transport):
    watch = cast.watch(secured.endpoints, ssl=trusting(authority, transport, certificate=False))
    watch.until(lambda machine: machine.error)
    assert "certificate" in reasons(watch)[0].lower()

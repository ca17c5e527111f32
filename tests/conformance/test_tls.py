"""Clients and servers that do not agree on TLS: both ends say so."""

import pytest

from conformance.links import Link
from conformance.wire import dialled
from rpc_proto import HandshakeError, Unavailable
from support.by_hand import option_line

FAILED = "the TLS handshake failed"


@pytest.mark.fault(83)
@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_plain_client_at_a_tls_port_is_told_of_tls(tcp_link: Link, scheme: str) -> None:
    with tcp_link.own_host(verbose=True) as host:
        address = f"{scheme}:{host.address('tls').partition(':')[2]}"
        with pytest.raises((Unavailable, HandshakeError), match="TLS"):
            tcp_link.connect_to(address)
        host.settle(connections=0)
        assert host.log().count(FAILED) == 1
        assert "Traceback" not in host.log()


@pytest.mark.fault(83)
@pytest.mark.parametrize("scheme", ["tls", "https"])
def test_tls_client_at_a_plain_port_is_told_of_tls(tcp_link: Link, scheme: str) -> None:
    with tcp_link.host() as host:
        address = f"{scheme}:{host.address('tcp').partition(':')[2]}"
        with pytest.raises(Unavailable, match=r"TLS.*(tcp|http)://"):
            tcp_link.connect_to(address)


@pytest.mark.fault(83)
def test_client_without_a_certificate_is_told_of_it(tcp_link: Link) -> None:
    authority = str(tcp_link._suite.authority.file)
    with tcp_link.own_host(verbose=True, authority=authority) as host:
        with pytest.raises(Unavailable, match="client certificate"):
            tcp_link.connect_to(host.address("tls"))
        host.settle(connections=0)
        assert host.log().count(FAILED) == 1
        assert "Traceback" not in host.log()
        trusted = tcp_link._suite.authority.client_context(certificate=True)
        with tcp_link.connect_to(host.address("tls"), ssl=trusted) as client:
            assert client.call("Basic.echo", 1) == 1


@pytest.mark.fault(83)
def test_failed_tls_is_not_worth_a_line_unless_asked_for(server_backend) -> None:
    with server_backend(max_connections=75) as host:
        with dialled(host.address("tls")) as scanner:
            scanner.send(option_line())
            scanner.receive_all()
        host.settle(connections=0)
        assert host.log() == ""

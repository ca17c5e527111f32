"""Addresses as URLs."""

import pytest

from rpc_proto import Address, parse_address

GOOD = {
    "tcp://localhost:80": Address("tcp", "localhost", 80),
    "tcp://127.0.0.1:65535": Address("tcp", "127.0.0.1", 65535),
    "tcp://[::1]:1": Address("tcp", "::1", 1),
    "tls://a-b.example.org:443": Address("tls", "a-b.example.org", 443),
    "tcp://example.org.:443": Address("tcp", "example.org.", 443),
    "unix:///run/rpc.sock": Address("unix", path="/run/rpc.sock"),
}
BAD = [
    "",
    "localhost:80",
    "file:///etc/passwd",
    "http://localhost:80",
    "TCP://localhost:80",
    "tcp:localhost:80",
    "tcp://localhost",
    "tcp://:80",
    "tcp://localhost:",
    "tcp://localhost:0",
    "tcp://localhost:65536",
    "tcp://localhost:-1",
    "tcp://localhost:+1",
    "tcp://localhost: 1",
    "tcp://localhost:1_0",
    "tcp://localhost:\u0661",
    "tcp://localhost:80/path",
    "tcp://user@host:80",
    "tcp://a,b:80",
    "tcp://host\r\n:80",
    "tcp://host\0:80",
    "tcp://::1:80",
    "tcp://[]:80",
    "tcp://h\u00f6st:80",
    "tcp://a..b:80",
    "tcp://" + "a" * 64 + ".org:80",
    "tcp://" + "a." * 5000 + "b:80",
    "unix://relative/path",
    "unix://",
    "unix:///nul\0",
    "unix:///" + "x" * 107,
    "unix:///\ud800",
]


@pytest.mark.parametrize(("url", "address"), GOOD.items(), ids=GOOD)
def test_address_is_parsed_and_written_again(url: str, address: Address) -> None:
    assert parse_address(url) == address
    assert str(address) == url


@pytest.mark.fault(58)
@pytest.mark.parametrize("url", BAD, ids=ascii)
def test_poisoned_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        parse_address(url)


def test_refusal_quotes_a_long_address_in_part() -> None:
    with pytest.raises(ValueError) as caught:
        parse_address("tcp://" + "x" * 10_000 + ":80")
    assert len(str(caught.value)) < 300


def test_port_zero_is_for_listening() -> None:
    assert parse_address("tcp://localhost:0", listening=True).port == 0


def test_longest_path_fits() -> None:
    path = "/" + "x" * 106
    assert parse_address(f"unix://{path}").path == path

"""Addresses as URLs."""

import pytest

from rpc_proto import Address, parse_address

GOOD = {
    "tcp://localhost:80": Address("tcp", "localhost", 80),
    "tcp://127.0.0.1:65535": Address("tcp", "127.0.0.1", 65535),
    "tcp://[::1]:1": Address("tcp", "::1", 1),
    "tls://a-b.example.org:443": Address("tls", "a-b.example.org", 443),
    "tcp://example.org.:443": Address("tcp", "example.org.", 443),
    "http://localhost:8080": Address("http", "localhost", 8080),
    "https://[::1]:8443": Address("https", "::1", 8443),
    "unix:///run/rpc.sock": Address("unix", path="/run/rpc.sock"),
}
BAD = [
    "",
    "localhost:80",
    "file:///etc/passwd",
    "http://",
    "http:///",
    "http://:80",
    "http://localhost:",
    "http://localhost:0",
    "http://localhost//",
    "http://localhost:80/path",
    "http://localhost?query",
    "https://user:secret@localhost:443",
    "http://host\r\nX: y:80",
    "ftp://localhost:80",
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


@pytest.mark.parametrize(
    ("url", "full"),
    [
        ("http://localhost", "http://localhost:80"),
        ("http://localhost/", "http://localhost:80"),
        ("https://localhost", "https://localhost:443"),
        ("https://[::1]/", "https://[::1]:443"),
        ("https://[::1]:8443/", "https://[::1]:8443"),
    ],
)
def test_web_address_may_leave_out_its_port_and_end_with_a_slash(url: str, full: str) -> None:
    assert str(parse_address(url)) == full


def test_who_listens_names_the_port() -> None:
    with pytest.raises(ValueError, match="host and a port"):
        parse_address("http://localhost", listening=True)
    assert parse_address("http://localhost:0/", listening=True).port == 0


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("tcp://localhost:80", "localhost:80"),
        ("http://[::1]:80", "[::1]:80"),
        ("tls://[fe80::1%eth0]:80", "[fe80::1]:80"),
    ],
)
def test_authority_is_host_and_port_as_others_know_them(url: str, authority: str) -> None:
    assert parse_address(url).authority == authority


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

"""The types of options' values; ArgumentTypeError says what is wrong with one."""

import math
from argparse import ArgumentTypeError

from rpc_discovery.polling import parse_registry
from rpc_proto import parse_address

__all__ = ["address", "count", "endpoints", "listening", "number", "registry", "seconds", "size"]


def _checked(text: str, listening: bool) -> str:
    try:
        parse_address(text, listening=listening)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def address(text: str) -> str:
    """Take an address to connect to."""
    return _checked(text, listening=False)


def listening(text: str) -> str:
    """Take an address to listen on."""
    return _checked(text, listening=True)


def registry(text: str) -> str:
    """Take the URL of a registry."""
    try:
        parse_registry(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
    return text


def endpoints(text: str) -> list[str]:
    """Take the URLs of one etcd, separated by commas."""
    from rpc_discovery.etcd.session import parse_endpoint

    try:
        return [parse_endpoint(url) for url in text.split(",")]
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def number(text: str) -> float:
    """Take seconds, 0 or more."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if math.isnan(value) or value < 0:
        raise ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def seconds(text: str) -> float:
    """Take seconds, more than 0."""
    value = number(text)
    if not value:
        raise ArgumentTypeError("must be more than 0 seconds")
    return value


def count(text: str) -> int:
    """Take a whole number from 1 to 100,000."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 100_000):
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 to 100000")
    return int(text)


def size(text: str) -> int:
    """Take a number of bytes."""
    if not (text.isascii() and text.isdigit() and len(text) < 11):
        raise ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)

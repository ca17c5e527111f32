"""The limits that the protocol fixes (docs/protocol.md), whatever the configuration."""

__all__ = [
    "LARGEST_BODY",
    "LARGEST_HEADER",
    "MAX_TIMEOUT",
    "SMALLEST_BODY",
    "SMALLEST_HEADER",
]

# Longer timeouts are clipped to a year, in seconds.
MAX_TIMEOUT = 366 * 86400.0

# Bytes. An error with its longest text fits into the smallest body in every codec.
SMALLEST_BODY = 8 * 1024
SMALLEST_HEADER = 256
LARGEST_BODY = 2**32 - 1
LARGEST_HEADER = 2**16 - 1

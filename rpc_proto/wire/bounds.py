"""The bounds that the protocol sets (docs/protocol.md), whatever is configured."""

__all__ = [
    "LARGEST_BODY",
    "LARGEST_HEADER",
    "MAX_TIMEOUT",
    "SMALLEST_BODY",
    "SMALLEST_HEADER",
]

# Longer timeouts are clipped to this, in seconds: a year.
MAX_TIMEOUT = 366 * 86400.0

# Bytes. An error with its longest text fits into the smallest body, whatever the codec makes of it.
SMALLEST_BODY = 8 * 1024
SMALLEST_HEADER = 256
LARGEST_BODY = 2**32 - 1
LARGEST_HEADER = 2**16 - 1

"""Latencies in bounded memory: percentiles and a histogram of any number of measurements."""

from collections.abc import Iterator
from math import ceil, frexp, ldexp

__all__ = ["Latencies", "format_seconds", "histogram_lines"]

# Measurements that agree in their first eight bits share a bucket: less than 0.8 % of difference.
_STEPS = 128


class Latencies:
    """Counts measurements, in seconds; a percentile is exact to 0.8 %, the maximum is exact."""

    def __init__(self) -> None:
        self.count = 0
        self.max = 0.0
        self._buckets: dict[int, int] = {}

    def add(self, seconds: float) -> None:
        """Add one measurement."""
        bucket = _bucket_of(seconds)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        if seconds > self.max:
            self.max = seconds

    def percentile(self, percent: float) -> float:
        """Return a percentile of the measurements, in seconds."""
        rank = max(1, ceil(self.count * percent / 100))
        for bucket in sorted(self._buckets):
            rank -= self._buckets[bucket]
            if rank <= 0:
                return min(_upper_end(bucket), self.max)
        return self.max

    def histogram(self, rows: int) -> Iterator[tuple[float, float, int]]:
        """Yield (from, to, count) for rows of equal ratio from the fastest to p99.9, and the rest.

        Equal steps of seconds would put nearly everything into the first row.
        """
        if not self.count:
            return
        first = min(self._buckets)
        last = max(first, _bucket_of(self.percentile(99.9)))
        width = ceil((last - first + 1) / rows)
        counts: dict[int, int] = {}
        rest = 0
        for bucket, count in self._buckets.items():
            if bucket > last:
                rest += count
            else:
                row = (bucket - first) // width
                counts[row] = counts.get(row, 0) + count
        for row in range(max(counts) + 1):
            low = first + row * width
            high = min(low + width - 1, last)
            yield _upper_end(low - 1), min(_upper_end(high), self.max), counts.get(row, 0)
        if rest:
            yield _upper_end(last), self.max, rest


def histogram_lines(
    latencies: Latencies, *, bar: str, width: int = 40, rows: int = 10
) -> list[str]:
    """Return the histogram as lines of text with bars made of the character `bar`."""
    table = list(latencies.histogram(rows))
    most = max((count for _, _, count in table), default=0)
    lines = []
    for low, high, count in table:
        length = ceil(count / most * width)
        between = f"{format_seconds(low):>8} - {format_seconds(high):>8}"
        lines.append(f"{between}  {bar * length:<{width}}  {count:,}")
    return lines


def format_seconds(seconds: float) -> str:
    """Return a duration with the unit that suits it, three digits or so."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 0.1:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"


def _bucket_of(seconds: float) -> int:
    fraction, exponent = frexp(seconds)
    return exponent * _STEPS + int(fraction * 2 * _STEPS) - _STEPS


def _upper_end(bucket: int) -> float:
    exponent, step = divmod(bucket, _STEPS)
    return ldexp((_STEPS + step + 1) / (2 * _STEPS), exponent)

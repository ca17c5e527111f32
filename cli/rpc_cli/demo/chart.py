"""A chart in plain text: what happened over time, for several that share the time."""

from collections.abc import Mapping, Sequence

__all__ = ["draw"]

_WIDTH = 54  # columns of bars; with the scale before them all fits into 80
_HEIGHT = 4  # lines of bars
_MARGIN = 16


def draw(
    times: Mapping[str, Sequence[float]], seconds: float, marks: Sequence[tuple[float, str]]
) -> list[str]:
    """Return the lines of a chart of how many a second there were of each.

    `times` are from 0 to `seconds`; `marks` says what happened when.
    """
    counts = {name: _count(times[name], seconds) for name in times}
    highest = max((max(each) for each in counts.values()), default=0) or 1
    rate = highest * _WIDTH / seconds
    lines = [" " * _MARGIN + _place(marks, seconds)]
    for name, each in counts.items():
        # What little there was is seen, too.
        heights = [max(count > 0, round(count * _HEIGHT / highest)) for count in each]
        for level in range(_HEIGHT, 0, -1):
            label = name if level == _HEIGHT else ""
            scale = f"{rate * level / _HEIGHT:.0f}/s"
            bars = "".join("#" if height >= level else " " for height in heights)
            lines.append(f"{label:<8}{scale:>6} |{bars}".rstrip())
    axis = "".join("+" if place % (_WIDTH // 6) == 0 else "-" for place in range(_WIDTH + 1))
    names = "".join(f"{seconds * sixth / 6:<{_WIDTH // 6}.1f}" for sixth in range(7))
    return [*lines, f"{'':{_MARGIN - 1}}{axis}", f"{'':{_MARGIN - 1}}{names.rstrip()} s"]


def _count(times: Sequence[float], seconds: float) -> list[int]:
    counts = [0] * _WIDTH
    for time in times:
        counts[min(_WIDTH - 1, max(0, int(time / seconds * _WIDTH)))] += 1
    return counts


def _place(marks: Sequence[tuple[float, str]], seconds: float) -> str:
    """Return a line with a v above each moment, and what happened beside it."""
    line = ""
    for at, text in sorted(marks):
        place = min(_WIDTH - 1, int(at / seconds * _WIDTH))
        before = f"{text} v".rjust(place + 1 - len(line))
        line = (
            line + before
            if len(line) + len(text) + 1 < place
            else f"{line + ' ' * bool(line):<{place}}v {text}"
        )
    return line

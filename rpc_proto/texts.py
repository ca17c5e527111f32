"""Making untrusted text safe to display."""

__all__ = ["printable"]


def printable(text: str, kept: str = "") -> str:
    """Return a text with everything escaped that could control a terminal or mislead a reader.

    Escaped as in a Python string: control characters, line breaks, direction marks and lone
    surrogates. Characters in `kept` are left alone.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape").decode()
        for character in text
    )

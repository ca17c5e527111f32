"""Texts that others wrote, made fit to be shown."""

__all__ = ["printable"]


def printable(text: str, kept: str = "") -> str:
    """Return a text with what could steer a terminal or change how it reads made visible.

    Escaped as in a Python string: control characters, line ends, marks that turn the direction of
    text, halves of surrogate pairs. `kept` are characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character.isprintable() or character in kept
        else character.encode("unicode_escape").decode()
        for character in text
    )

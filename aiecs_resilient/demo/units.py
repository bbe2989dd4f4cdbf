"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """``0.8 ms``, ``43 ms``, ``1.24 s``; a dash for what did not happen."""
    if seconds is None:
        return "–"
    if seconds < 0.0095:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"


def count(number: int) -> str:
    """With a comma between thousands."""
    return f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 write``, ``1,204 writes``."""
    return f"{count(number)} {one if number == 1 else many or one + 's'}"

"""``250ms``, ``2s``, ``5m``, ``64KiB``: durations and sizes as people write them, and back again for ``explain``."""

from __future__ import annotations

import re

DURATION_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(us|ms|s|m|h|d)$"
SIZE_PATTERN = r"^[0-9]+(\.[0-9]+)? ?(B|KB|KiB|MB|MiB|GB|GiB)$"

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_BYTES = {"B": 1, "KB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
_PARTS = re.compile(r"([0-9.]+) ?([A-Za-z]+)")


def parse_duration(text: str) -> float:
    """Seconds; ValueError if the text is no duration. Units are told apart by case as everywhere: ``m`` is a minute."""
    number, unit = _split(text, DURATION_PATTERN, "a duration")
    if unit == "ms":
        return number / 1_000  # exact where multiplying by 0.001 is not
    return number * _SECONDS[unit]


def parse_size(text: str) -> int:
    """Bytes; ValueError if the text is no size or not a whole number of bytes."""
    number, unit = _split(text, SIZE_PATTERN, "a size")
    size = number * _BYTES[unit]
    if not size.is_integer():
        raise ValueError("not a whole number of bytes")
    return int(size)


def _split(text: str, pattern: str, what: str) -> tuple[float, str]:
    parts = _PARTS.fullmatch(text)
    if parts is None or re.fullmatch(pattern, text) is None:
        raise ValueError(f"not {what}")
    return float(parts[1]), parts[2]


def format_duration(seconds: float) -> str:
    """The shortest form in one unit: ``250ms``, ``1.5s``, ``5m``."""
    if seconds == 0:
        return "0s"
    for unit in ("d", "h", "m"):
        if seconds >= _SECONDS[unit] and (seconds / _SECONDS[unit]).is_integer():
            return f"{seconds / _SECONDS[unit]:g}{unit}"
    if seconds >= 1:
        return f"{seconds:g}s"
    return f"{seconds * 1e3:g}ms" if seconds >= 1e-3 else f"{seconds * 1e6:g}us"


def format_size(size: int) -> str:
    """The shortest exact form: ``64KiB``, ``10MB``, ``1000B``."""
    for unit in ("GiB", "GB", "MiB", "MB", "KiB", "KB"):
        if size >= _BYTES[unit] and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"

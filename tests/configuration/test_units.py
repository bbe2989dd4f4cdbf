"""Durations and sizes mean what people write, and are written back so that they mean the same."""

from __future__ import annotations

import pytest

from aiecs_resilient.configuration.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("2s", 2.0),
        ("1.5 s", 1.5),
        ("5m", 300.0),
        ("1h", 3_600.0),
        ("1d", 86_400.0),
        ("80us", 8e-5),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    """`m` is a minute and `ms` a thousandth of a second."""
    assert parse_duration(text) == pytest.approx(seconds)
    assert parse_duration(format_duration(parse_duration(text))) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "2", "2 seconds", "-2s", "2M", "s", "1e3s", "2s 3ms", "٢s", "2s\n"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Nothing is guessed: no unit, no sign, no other alphabet's digits."""
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("64KiB", 65_536), ("10MB", 10_000_000), ("1.5KiB", 1_536), ("7B", 7), ("1GiB", 2**30)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    """Binary and decimal units are told apart."""
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "64", "64K", "64kb", "0.3B", "-1B"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Nothing is guessed, and there is no part of a byte."""
    with pytest.raises(ValueError, match="not a"):
        parse_size(text)

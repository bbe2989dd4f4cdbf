"""Sessions and messages in the interchange form of the specification: counters under ``metrics``, times as ISO text.

For exports, events and other programs; no store uses it. What :func:`serialize_session` gives is made of JSON types as far
as the session's own values are; :func:`deserialize_session` gives it back flat, times as datetimes. Times are UTC: naive
ones are taken as such, aware ones are converted, and both leave naive, with microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any, Final

from ..clock import iso, wall_us
from ..errors import InvalidValueError
from ..interface import Json

_COUNTERS: Final[Mapping[str, int | float]] = {
    "request_count": 0,
    "total_processing_time": 0.0,
    "error_count": 0,
}
_TIMES: Final = ("created_at", "updated_at", "last_activity")
_REQUIRED: Final = ("session_id", "user_id", "status", "created_at", "updated_at")
_NESTED: Final = "metrics"


def serialize_session(session_data: Mapping[str, Any]) -> Json:
    """A session as ``get_session`` answers it, or with datetimes, in the interchange form.

    Custom fields stay beside the fixed ones. Nothing that is returned is shared with what was given.

    Raises:
        InvalidValueError: a required key is missing, a time is none, or a custom field is called ``metrics``.
    """
    _require(session_data, "session")
    if _NESTED in session_data:
        raise InvalidValueError(
            "session has a field 'metrics', where the interchange form keeps the counters: rename that field"
        )
    flat: Json = {**session_data, "metadata": _or_empty(session_data.get("metadata"))}
    written: Json = {
        name: _text(value, f"session[{name!r}]") if name in _TIMES else deepcopy(value)
        for name, value in flat.items()
        if name not in _COUNTERS
    }
    counters = {name: session_data.get(name, default) for name, default in _COUNTERS.items()}
    return {**written, _NESTED: counters}


def deserialize_session(data: Mapping[str, Any]) -> Json:
    """What :func:`serialize_session` made, flat again, with times as naive UTC datetimes.

    Raises:
        InvalidValueError: a required key is missing, a time cannot be read, or ``metrics`` is no mapping.
    """
    _require(data, "serialized session")
    counters = _or_empty(data.get(_NESTED))
    if not isinstance(counters, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]  what comes from outside
        raise InvalidValueError(
            f"serialized session['metrics'] must be a mapping, not {type(counters).__name__}"
        )
    flat: Json = {**data, "metadata": _or_empty(data.get("metadata"))}
    session: Json = {
        name: _time(value, f"serialized session[{name!r}]") if name in _TIMES else deepcopy(value)
        for name, value in flat.items()
        if name != _NESTED
    }
    return {**session, **{name: counters.get(name, default) for name, default in _COUNTERS.items()}}


def serialize_message(
    role: str,
    content: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    timestamp: datetime | str | None = None,
) -> Json:
    """A message in the interchange form.

    Args:
        timestamp: when it was said, as a stored message tells it; now if None.

    Raises:
        InvalidValueError: ``timestamp`` is no time.
    """
    return {
        "role": role,
        "content": content,
        "timestamp": iso(wall_us()) if timestamp is None else _text(timestamp, "timestamp"),
        "metadata": deepcopy(dict(metadata or {})),
    }


def _or_empty(value: Json | None) -> Json:
    return {} if value is None else value


def _require(data: Mapping[str, Any], what: str) -> None:
    missing = [name for name in _REQUIRED if name not in data]
    if missing:
        raise InvalidValueError(f"{what} lacks {', '.join(missing)}; it needs {', '.join(_REQUIRED)}")


def _time(value: object, what: str) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError as error:
            raise InvalidValueError(f"{what} is no ISO-8601 time: {value!r}") from error
    if not isinstance(value, datetime):
        raise InvalidValueError(f"{what} must be a datetime or ISO-8601 text, not {type(value).__name__}")
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _text(value: object, what: str) -> str:
    return _time(value, what).isoformat(timespec="microseconds")


__all__ = ["deserialize_session", "serialize_message", "serialize_session"]

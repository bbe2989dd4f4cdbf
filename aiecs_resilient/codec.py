"""Values and ids as bytes, faithfully or not at all.

Values travel as MessagePack, made and read by one C call. What MessagePack cannot carry itself goes into extension
types (tuples, integers beyond 64 bits); what the contract converts is converted (dataclass to dict, set to list,
datetime to ISO text); everything else is refused with the path inside the value. Nothing is ever stringified silently.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from datetime import date, datetime, time
from enum import Enum
from typing import Any

import ormsgpack

from .errors import DataCorruptionError, InvalidValueError

MAX_ID_CHARACTERS = 512
MAX_VALUE_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 64

_EXT_TUPLE, _EXT_INT = 1, 2
_OPTIONS = (
    ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_BIG_INT
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
)


def _default(value: Any) -> Any:  # Any: whatever MessagePack could not carry
    raw: Any = value  # as it came: checkers narrow `value` to containers of unknown items
    if isinstance(value, tuple):
        return ormsgpack.Ext(_EXT_TUPLE, _pack(list(raw)))
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int):
        return ormsgpack.Ext(_EXT_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))
    if isinstance(value, (set, frozenset)):
        return sorted(raw, key=repr)  # sets have no order; a stable one keeps both stores' bytes equal
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (bytearray, memoryview)):
        return bytes(raw)
    raise TypeError


def _ext_hook(tag: int, data: bytes) -> Any:
    if tag == _EXT_TUPLE:
        return tuple(_unpack(data))
    if tag == _EXT_INT:
        return int.from_bytes(data, "big", signed=True)
    raise DataCorruptionError(
        f"stored value has extension type {tag}, which this version does not know; was it written by a newer one?"
    )


def _pack(value: Any) -> bytes:
    return ormsgpack.packb(value, _default, _OPTIONS)


def _unpack(data: bytes) -> Any:
    return ormsgpack.unpackb(data, ext_hook=_ext_hook)


def encode(value: Any, what: str, *, limit: int = MAX_VALUE_BYTES) -> bytes:
    """The value as bytes.

    Args:
        value: JSON types, bytes, tuples, sets, datetimes, dataclasses, nested.
        what: how to call it in an error, such as ``metadata``.
        limit: the most bytes it may take.

    Raises:
        InvalidValueError: it cannot be stored faithfully; names the path.
    """
    try:
        data = _pack(value)
    except (TypeError, ValueError, RecursionError) as error:
        reason = next(_faults(value, what, 0), f"{what}: {error}")
        raise InvalidValueError(f"cannot be stored faithfully: {reason}") from error
    if len(data) > limit:
        raise InvalidValueError(
            f"{what} takes {len(data):,} bytes, the limit is {limit:,}: raise the limit or store it in parts"
        )
    return data


def decode(data: bytes, what: str = "value") -> Any:
    """What :func:`encode` made. Raises DataCorruptionError for anything else."""
    try:
        return _unpack(data)
    except (ValueError, TypeError) as error:
        raise DataCorruptionError(f"stored {what} cannot be read ({error}); it is left as it is") from error


def _faults(value: Any, path: str, depth: int) -> Iterator[str]:
    """The first places in a value that cannot be stored, found only after the fast path has failed."""
    raw: Any = value
    if depth > MAX_DEPTH:
        yield f"{path} is nested deeper than {MAX_DEPTH} levels"
    elif isinstance(value, Enum):
        yield f"{path} is the enum member {value!r}; store its .value"
    elif value is None or isinstance(value, (bool, int, float, bytes, bytearray, memoryview)):
        return
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield f"{path} holds a lone surrogate, which no encoding can carry"
    elif isinstance(value, dict):
        for key, item in raw.items():
            if not isinstance(key, str):
                yield f"{path} has a key {key!r} of type {type(key).__name__}; keys must be str"
            else:
                yield from _faults(key, f"{path} key {key!r}", depth + 1)
                yield from _faults(item, f"{path}[{key!r}]", depth + 1)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(raw):
            yield from _faults(item, f"{path}[{index}]", depth + 1)
    elif isinstance(value, (datetime, date, time)):
        return
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _faults(getattr(value, field.name), f"{path}.{field.name}", depth + 1)
    else:
        yield f"{path} is a {type(value).__module__}.{type(value).__qualname__}; only JSON types, bytes, tuples, sets, datetimes and dataclasses can be"


def check_id(value: str, what: str) -> str:
    """Refuse an id that cannot be kept: 1 to 512 Unicode characters, no lone surrogate."""
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]  callers are not all typed
        raise InvalidValueError(f"{what} must be a str, not {type(value).__name__}")
    if not 1 <= len(value) <= MAX_ID_CHARACTERS:
        raise InvalidValueError(f"{what} must have 1 to {MAX_ID_CHARACTERS} characters, not {len(value)}")
    return check_text(value, what)


def check_text(value: str, what: str) -> str:
    """Refuse text that has no encoding. NUL is fine: stores that cannot keep it escape it."""
    if not isinstance(value, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidValueError(f"{what} must be a str, not {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidValueError(
                f"{what} holds a lone surrogate at character {error.start}, which no encoding can carry"
            ) from error
    return value


_ESCAPE = "\x1b"  # as good as never in real text, so that stored text reads as it was written
_LONGEST_KEY_BYTES = 200  # of an index entry: PostgreSQL refuses rows of over 2,704 bytes in an index


def escape_text(value: str) -> str:
    """Text for stores that cannot keep NUL (PostgreSQL); undone by :func:`unescape_text`."""
    if "\x00" not in value and _ESCAPE not in value:
        return value
    return value.replace(_ESCAPE, _ESCAPE + "e").replace("\x00", _ESCAPE + "0")


def unescape_text(value: str) -> str:
    """What :func:`escape_text` was given."""
    if _ESCAPE not in value:
        return value
    return value.replace(_ESCAPE + "0", "\x00").replace(_ESCAPE + "e", _ESCAPE)


def encode_key(value: str) -> str:
    """An id as a key that fits any index: itself if short, else its beginning and a SHA-256. No two ids share a key.

    A hashed key begins with ``ESC h``, which :func:`escape_text` never writes, so it cannot meet a short one.
    """
    text = escape_text(value)
    if len(text) * 4 <= _LONGEST_KEY_BYTES or len(text.encode()) <= _LONGEST_KEY_BYTES:
        return text
    return f"{_ESCAPE}h{text[:32]}{hashlib.sha256(value.encode()).hexdigest()}"


def fingerprint(kind: str, key: str, parts: object) -> bytes:
    """16 bytes that tell whether an op_id came again with the same payload; times and stamps are left out."""
    return hashlib.blake2b(_pack([kind, key, parts]), digest_size=16).digest()

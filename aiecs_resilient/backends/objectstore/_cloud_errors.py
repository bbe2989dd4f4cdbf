"""What obstore says, as what this library says: the one place where its errors are mapped.

obstore has few classes and tells the rest in its text, so status and kind are read from there. ``not_applied`` is said only
where the service refused or was never reached; everything that broke off in between is unknown.
"""

from __future__ import annotations

import re

from ...errors import (
    DataCorruptionError,
    InvalidValueError,
    Outcome,
    OverloadedError,
    StorageConnectionError,
    StorageError,
    StorageTimeoutError,
)
from ._objects import Throttled

_STATUS = re.compile(r"non-2xx status code: (\d{3})")
_KIND = re.compile(r"HttpError \{\s*kind: (\w+)")
_CODE = re.compile(r"<Code>(\w+)</Code>")

SLOW_DOWN_SECONDS = 1.0
"""What ``retry_after`` says where the service asked for less without saying how long: obstore does not pass its header on."""


def status_of(error: BaseException) -> int:
    """The HTTP status, 0 where there was none."""
    found = _STATUS.search(str(error))
    return 0 if found is None else int(found.group(1))


def bucket_is_missing(error: BaseException) -> bool:
    """404 for the bucket, not for the object."""
    found = _CODE.search(str(error))
    return found is not None and found.group(1) in ("NoSuchBucket", "ContainerNotFound")


def map_error(error: BaseException, address: str, name: str, outcome: Outcome) -> StorageError:
    """Ours for obstore's.

    Args:
        error: what it raised.
        address: of the store, for people.
        name: of the backend.
        outcome: what may have happened, where the error does not say it better.
    """
    status, text = status_of(error), first_line(error)
    if bucket_is_missing(error):
        return StorageConnectionError(
            f"the bucket of {address} does not exist: create it, or correct url and region",
            transient=False,
            outcome="not_applied",
            backend=name,
        )
    known = _of_status(status, address, name, text)
    return known if known is not None else _of_kind(error, address, name, text, outcome)


def _of_status(status: int, address: str, name: str, text: str) -> StorageError | None:
    match status:
        case 429:
            return Throttled(
                f"{address} asks for fewer writes to one object: spread them over more keys ({text})",
                outcome="not_applied",
                backend=name,
                retry_after=SLOW_DOWN_SECONDS,
            )
        case 503:
            return StorageConnectionError(
                f"{address} asks for fewer requests: lower max_concurrency if that goes on ({text})",
                outcome="not_applied",
                backend=name,
                retry_after=SLOW_DOWN_SECONDS,
            )
        case 401 | 403:
            return StorageConnectionError(
                f"{address} refuses these credentials: give ones that may read, write, delete and list there ({text})",
                transient=False,
                outcome="not_applied",
                backend=name,
            )
        case 507:
            return StorageConnectionError(
                f"{address} has no space left: free some, or raise its quota ({text})",
                outcome="not_applied",
                backend=name,
            )
        case 413:
            return InvalidValueError(f"{address} refuses an object of this size ({text})", backend=name)
        case 500 | 502 | 504:
            return StorageConnectionError(f"{address} failed ({text})", backend=name)
        case status if 400 <= status < 500:
            return StorageError(
                f"{address} refuses a request: are url, region and endpoint right? ({text})",
                outcome="not_applied",
                backend=name,
            )
        case _:
            return None


def _of_kind(error: BaseException, address: str, name: str, text: str, outcome: Outcome) -> StorageError:
    found = _KIND.search(str(error))
    match found.group(1) if found is not None else "":
        case "Timeout":
            return StorageTimeoutError(
                f"{address} did not answer in time: raise request_timeout if that is normal for it ({text})",
                outcome=outcome,
                backend=name,
            )
        case "Connect":
            return StorageConnectionError(
                f"{address} cannot be reached: check endpoint and network ({text})",
                outcome="not_applied",
                backend=name,
            )
        case "Interrupted" | "Request" | "Decode" | "Unknown":
            return StorageConnectionError(
                f"the connection to {address} broke off ({text})", outcome=outcome, backend=name
            )
        case _:
            pass
    kind = type(error).__name__
    if "token" in text or "credential" in text.lower() or kind == "UnauthenticatedError":
        return StorageConnectionError(
            f"no credentials for {address} were found, in options, environment or machine: give some ({text})",
            transient=False,
            outcome="not_applied",
            backend=name,
        )
    if "redirect" in text:
        return StorageError(
            f"{address} is elsewhere: correct region or endpoint ({text})",
            outcome="not_applied",
            backend=name,
        )
    if isinstance(error, MemoryError):
        return OverloadedError(f"no memory left to talk to {address}", backend=name)
    if "invalid list response" in text:
        return DataCorruptionError(f"{address} answered a listing that cannot be read ({text})", backend=name)
    return StorageError(f"{address} cannot do this ({text})", outcome=outcome, backend=name)


def first_line(error: BaseException) -> str:
    """Without obstore's account of its own insides."""
    return str(error).split("\n", 1)[0][:300]

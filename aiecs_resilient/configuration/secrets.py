"""What a configuration may show of itself: no password in an address, no value of an option with a telling name."""

from __future__ import annotations

import re

from .. import privacy

MASK = privacy.HIDDEN

_BARE_PASSWORD = re.compile(r"^[^:/@\s]+:\S*@")  # user:password@host, where somebody forgot the scheme
_TELLING_NAME = re.compile(
    r"(?i)password|passwd|passphrase|secret|token$|credential|authorization|api[-_]?key|headers"
)


def redact(text: str) -> str:
    """The text without credentials."""
    return privacy.redact(_BARE_PASSWORD.sub(f"{MASK}@", text))


def is_secret_name(name: str) -> bool:
    """Whether an option of this name may never show its value."""
    return _TELLING_NAME.search(name) is not None

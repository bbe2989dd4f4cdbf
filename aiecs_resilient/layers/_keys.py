"""Keys by name, and how one value is encrypted under an address: AES-256-GCM with a key and nonce of its own.

The form of sealed bytes, version 1::

    01 | length of key id | key id | iv (28 bytes) | ciphertext and tag

The iv is a keyed hash of operation, address and value, so an operation that is sent again is the same bytes again, and no
two values share a key and a nonce. Its first 16 bytes make the key of this one value, its last 12 are the nonce: that takes
away GCM's limit of 2^32 values per key. Header and address are authenticated with the value.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = b"\x01"
KEY_BYTES = 32
_IV_BYTES, _SALT_BYTES = 28, 16
_MOST_ID_BYTES = 255


class UnknownKeyError(LookupError):
    """Encrypted under a key that is not at hand; ``args[0]`` is its name."""


class TamperedError(ValueError):
    """Not what was encrypted under that address."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Main keys by name, one of which encrypts; the others are there to read what was written before.

    Raises:
        ConfigurationError: there is none, or one that is no key. No message shows any of it.
    """

    secrets: Mapping[str, bytes] = field(repr=False)
    active: str

    @staticmethod
    def parse(texts: Mapping[str, str] | None, active: str | None) -> Keys:
        """Keys as configured: name → 32 bytes in base64 or hexadecimal. The only one is the active one."""
        if not texts:
            raise ConfigurationError(
                "encryption needs keys: secret_keys: {2026-01: ${AIECS_KEY}}, where the value is 32 random bytes in base64, "
                "as `openssl rand -base64 32` makes them"
            )
        if active is None and len(texts) > 1:
            raise ConfigurationError(
                f"encryption: active_key must say which of {', '.join(sorted(texts))} encrypts; the others only read"
            )
        name = next(iter(texts)) if active is None else active
        if name not in texts:
            raise ConfigurationError(
                f"encryption: active_key {name!r} is none of secret_keys: {', '.join(sorted(texts))}"
            )
        return Keys({id: _key(id, text) for id, text in texts.items()}, name)

    def seal(self, address: bytes, op_id: str, data: bytes) -> bytes:
        """Encrypt under the active key."""
        main, header = self.secrets[self.active], _header(self.active)
        context = header + address
        parts = (op_id.encode(errors="surrogatepass"), context, data)
        whole = b"".join([part for piece in parts for part in (len(piece).to_bytes(8, "big"), piece)])
        iv = hmac.digest(_derived(main, b"aiecs iv"), whole, "sha512")[:_IV_BYTES]
        return header + iv + _cipher(main, iv).encrypt(iv[_SALT_BYTES:], data, context)

    def unseal(self, address: bytes, sealed: bytes) -> tuple[str, bytes]:
        """Name of the key, and what was encrypted.

        Raises:
            UnknownKeyError, TamperedError: see there.
        """
        from cryptography.exceptions import InvalidTag

        end = 2 + (sealed[1] if len(sealed) > 1 else 0)
        if sealed[:1] != VERSION or len(sealed) < end + _IV_BYTES:
            raise TamperedError("it has a form that this version does not know")
        header, iv = sealed[:end], sealed[end : end + _IV_BYTES]
        name = header[2:].decode(errors="replace")
        main = self.secrets.get(name)
        if main is None:
            raise UnknownKeyError(name)
        try:
            data = _cipher(main, iv).decrypt(iv[_SALT_BYTES:], sealed[end + _IV_BYTES :], header + address)
        except InvalidTag as error:
            raise TamperedError("it was changed, or belongs elsewhere") from error
        return name, data

    def keyed(self, data: bytes) -> bytes:
        """16 bytes that tell equal data apart from other data, to nobody without the key."""
        return hmac.digest(_derived(self.secrets[self.active], b"aiecs fingerprint"), data, "sha256")[:16]


def pack(address: tuple[str, ...]) -> bytes:
    """An address as bytes; no two addresses are the same ones."""
    parts = [part.encode(errors="surrogatepass") for part in address]
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _header(name: str) -> bytes:
    id = name.encode()
    return VERSION + bytes([len(id)]) + id


def _derived(main: bytes, purpose: bytes) -> bytes:
    return hmac.digest(main, purpose, "sha256")


def _cipher(main: bytes, iv: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_derived(main, b"aiecs value" + iv[:_SALT_BYTES]))


def _key(name: str, text: str) -> bytes:
    if not 1 <= len(name.encode(errors="surrogatepass")) <= _MOST_ID_BYTES or not name.isprintable():
        raise ConfigurationError(
            f"encryption: the name of a key must be 1 to {_MOST_ID_BYTES} bytes of printable text"
        )
    try:
        compact = text.strip()
        key = (
            bytes.fromhex(compact)
            if len(compact) == 2 * KEY_BYTES
            else base64.b64decode(compact.replace("-", "+").replace("_", "/"), validate=True)
        )
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"encryption: key {name!r} is not {KEY_BYTES} bytes in base64 or hexadecimal; `openssl rand -base64 32` makes one"
        )
    return key

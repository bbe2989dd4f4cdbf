"""encryption: what the stores hold says nothing to who reads their disks, backups or network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import ClassVar

from .. import telemetry
from ..errors import ConfigurationError, DataCorruptionError
from ..interface import Backend, Json
from ..records import Mutation
from ._base import report_part
from ._keys import Keys, TamperedError, UnknownKeyError, pack
from ._sealing import Address, Sealing


@dataclass(slots=True)
class Seals:
    """What was done; outlives a reload.

    Attributes:
        sealed: values that were encrypted.
        opened: values that were decrypted, by the name of their key: an old one that is met no more may go.
        plain: values that were met unencrypted.
        refused: values that were not shown.
    """

    sealed: int = 0
    opened: dict[str, int] = field(default_factory=dict[str, int])
    plain: int = 0
    refused: int = 0


class Encryption(Sealing):
    """Encrypts every value with AES-256-GCM, bound to the place where it belongs.

    Encrypted are contents, metadata, checkpoint data, pending writes, task contexts and custom fields. Ids, users, states,
    the roles of messages, counters and times are not: stores list, filter and order by them.

    The address of a value (kind of row, session or thread with its tenant, message, checkpoint, field) is authenticated with
    it, so a row that somebody copied to another place is refused, as is a changed one. An older value of the same place that
    somebody put back, and a row that somebody removed, are not noticed.

    Keys have names. To rotate, add a new one, make it ``active_key``, and keep the old one for what it has encrypted;
    metrics count by key what is still read. With ``strict`` a value that is not encrypted is refused; without, it is read as
    it is: for the time in which a store that held plaintext fills up with encrypted values.

    Equal operations encrypt to equal bytes, so a write that is sent again is the same write; different ones never do, even
    with equal values. A write repeated under its ``op_id`` across a change of key is taken for another one: ConflictError.

    Place: inside ``compression`` and ``namespace``, outside ``dual_write``, so that the two stores hold equal bytes::

        namespace → cache → batching → compression → encryption → dual_write{…}      right
        encryption → compression → redis       wrong: encrypted bytes do not compress
        dual_write{encryption → …, …}          wrong: a leg alone; the other holds plaintext
        encryption → namespace → redis         wrong: the address lacks the tenant, so rows of tenants can be exchanged

    Needs the extra ``encryption``: ``pip install "aiecs-resilient[encryption]"``. Not over a store of others that takes no
    records.
    Errors: DataCorruptionError for what was changed, belongs elsewhere, is not encrypted (``strict``) or has a key that is
    not at hand. Events: ``ciphertext.refused`` with the reason, ``plaintext.read``. Metrics and health: part ``encryption``.
    Cancellation passes untouched; a thread that was begun for a large value ends by itself.

    Args:
        secret_keys: name of a key → 32 random bytes in base64 or hexadecimal; from the environment, never in a file.
        active_key: name of the key that encrypts; not needed where there is only one.
        strict: refuse what is not encrypted.
        state: what was done; outlives a reload.
    """

    layer_name: ClassVar[str] = "encryption"
    mark: ClassVar[str] = "aiecs.sealed"

    def __init__(
        self,
        inner: Backend,
        *,
        secret_keys: Mapping[str, str] | None = None,
        active_key: str | None = None,
        strict: bool = True,
        state: Seals | None = None,
    ) -> None:
        super().__init__(inner)
        if find_spec("cryptography") is None:
            raise ConfigurationError(
                'encryption needs the package cryptography: pip install "aiecs-resilient[encryption]"'
            )
        self._keys = Keys.parse(secret_keys, active_key)
        self._strict = strict
        self.state = Seals() if state is None else state

    def describe(self) -> str:
        strict = "strict" if self._strict else "plaintext is read"
        return f"key {self._keys.active!r}, {strict}, {self.state.refused} refused"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        state = self.state
        return {
            "active_key": self._keys.active,
            "strict": self._strict,
            "sealed": state.sealed,
            "opened": dict(state.opened),
            "plain": state.plain,
            "refused": state.refused,
        }

    # ------------------------------------------------------------------ values

    def seal(self, address: Address, op_id: str, data: bytes, *, force: bool) -> bytes:
        self.state.sealed += 1
        return self._keys.seal(pack(address), op_id, data)

    def fingerprint_of(self, mutation: Mutation) -> bytes:
        return self._keys.keyed(mutation.fingerprint)  # as it came, it would confirm a guess at a short value

    def unseal(self, address: Address, data: bytes) -> bytes:
        try:
            name, opened = self._keys.unseal(pack(address), data)
        except UnknownKeyError as error:
            raise self._refusal(
                address, "key", f"its key {error.args[0]!r} is not among secret_keys"
            ) from error
        except TamperedError as error:
            raise self._refusal(address, "tampered", str(error)) from error
        self.state.opened[name] = self.state.opened.get(name, 0) + 1
        return opened

    def unsealed(self, address: Address) -> None:
        if self._strict:
            raise self._refusal(address, "plaintext", "it is not encrypted (strict)")
        self.state.plain += 1
        telemetry.event(telemetry.PLAINTEXT_READ, backend=self.name)

    def _refusal(self, address: Address, reason: str, why: str) -> DataCorruptionError:
        self.state.refused += 1
        telemetry.event(telemetry.CIPHERTEXT_REFUSED, backend=self.name, reason=reason)
        return DataCorruptionError(
            f"an encrypted {address[0]} cannot be trusted: {why}; it is left as it is", backend=self.name
        )

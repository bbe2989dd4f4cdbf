"""compression: large values take a fraction of the space, on the wire and in both stores."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Annotated, ClassVar

from ..errors import DataCorruptionError
from ..interface import Backend, Json
from ..units import Bytes, Ratio, Unit
from ._base import report_part
from ._options import checked
from ._sealing import Address, Sealing

Level = Annotated[int, Unit("number", ge=1, le=9)]
"""zlib's: 1 is fastest, 9 is smallest."""

_STORED, _DEFLATED = b"\x00", b"\x01"
_SIZE_BYTES = 8


@dataclass(slots=True)
class Savings:
    """What was gained; outlives a reload.

    Attributes:
        packed: values that were compressed.
        left: values that were left as they are: too small, or no smaller afterwards.
        bytes_in, bytes_out: of those that were compressed, before and after.
        opened: values that were decompressed.
    """

    packed: int = 0
    left: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    opened: int = 0


class Compression(Sealing):
    """Compresses values from a size on, where that saves enough. What was stored before, uncompressed, is read as it is.

    It uses deflate. A compressed value says how large it was, and opens to exactly that, so a forged one cannot fill the
    memory. Values of a megabyte and more are worked on in a thread.

    Place: outside ``encryption``, both outside ``dual_write``, so that the two stores hold equal bytes::

        cache → batching → compression → encryption → dual_write{…}      right
        encryption → compression → redis       wrong: encrypted bytes do not compress
        dual_write{compression → …, …}         wrong: the two stores hold different bytes and cannot be compared
        compression → cache → redis            costs: each hit is decompressed again

    Ids, users, states, counters and times stay as they are, so listing and filtering work. Not over a store of others that
    takes no records.
    Errors: DataCorruptionError for what cannot be opened. Metrics and health: part ``compression`` with the ratio.
    Cancellation passes untouched; a thread that was begun ends by itself and nobody waits for it.

    Args:
        min_size: bytes from which on a value is compressed.
        min_saving: share of its bytes that must be saved, or the value is left as it is.
        level: 1 is fastest, 9 is smallest.
        state: what was gained; outlives a reload.
    """

    layer_name: ClassVar[str] = "compression"
    mark: ClassVar[str] = "aiecs.packed"

    def __init__(
        self,
        inner: Backend,
        *,
        min_size: Bytes = 1024,
        min_saving: Ratio = 0.1,
        level: Level = 1,
        state: Savings | None = None,
    ) -> None:
        super().__init__(inner)
        self._min_size = checked(self.layer_name, "min_size", min_size, Bytes)
        self._min_saving = checked(self.layer_name, "min_saving", min_saving, Ratio)
        self._level = checked(self.layer_name, "level", level, Level)
        self._most = 2 * self.max_value_bytes + 1024 * 1024  # a message is sealed whole, content and metadata
        self.state = Savings() if state is None else state

    def describe(self) -> str:
        state = self.state
        ratio = f", to {state.bytes_out / state.bytes_in:.0%}" if state.bytes_in else ""
        return f"{state.packed} packed{ratio}, {state.left} left"

    async def health_check(self) -> Json:
        return report_part(await self.inner.health_check(), self.layer_name, self._facts())

    async def get_metrics(self) -> Json:
        return report_part(await self.inner.get_metrics(), self.layer_name, self._facts())

    def _facts(self) -> Json:
        state = self.state
        return {
            "packed": state.packed,
            "left": state.left,
            "opened": state.opened,
            "bytes_in": state.bytes_in,
            "bytes_out": state.bytes_out,
        }

    def seal(self, address: Address, op_id: str, data: bytes, *, force: bool) -> bytes | None:
        if len(data) >= self._min_size:
            packed = _DEFLATED + len(data).to_bytes(_SIZE_BYTES, "big") + zlib.compress(data, self._level)
            if len(packed) <= len(data) * (1 - self._min_saving):
                self.state.packed += 1
                self.state.bytes_in += len(data)
                self.state.bytes_out += len(packed)
                return packed
        self.state.left += 1
        return _STORED + data if force else None

    def unseal(self, address: Address, data: bytes) -> bytes:
        form, rest = data[:1], data[1:]
        if form == _STORED:
            return rest
        if form != _DEFLATED or len(rest) < _SIZE_BYTES:
            raise _corrupt(
                address, "it has a form that this version does not know; was it written by a newer one?"
            )
        size = int.from_bytes(rest[:_SIZE_BYTES], "big")
        if size > self._most:
            raise _corrupt(address, f"it says that it holds {size:,} bytes, the most is {self._most:,}")
        opener = zlib.decompressobj()
        try:
            opened = opener.decompress(rest[_SIZE_BYTES:], size + 1)
        except zlib.error as error:
            raise _corrupt(address, str(error)) from error
        if len(opened) != size or not opener.eof or opener.unused_data:
            raise _corrupt(address, f"it does not hold the {size:,} bytes that it says")
        self.state.opened += 1
        return opened


def _corrupt(address: Address, why: str) -> DataCorruptionError:
    return DataCorruptionError(f"a compressed {address[0]} cannot be read: {why}")

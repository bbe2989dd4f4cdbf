"""The address's scheme decides what keeps the objects; libraries are imported when they are needed."""

from __future__ import annotations

from ._address import Address
from ._files import FileObjects
from ._objects import Objects


def make_objects(
    address: Address,
    *,
    name: str,
    request_timeout: float,
    connect_timeout: float,
    lock_timeout: float,
    max_concurrency: int,
) -> Objects:
    """Not yet opened."""
    if address.scheme == "file":
        return FileObjects(
            address.root, name=name, lock_timeout=lock_timeout, threads=min(max_concurrency, 16)
        )
    from ._cloud import CloudObjects

    return CloudObjects(
        address,
        name=name,
        request_timeout=request_timeout,
        connect_timeout=connect_timeout,
        max_concurrency=max_concurrency,
    )

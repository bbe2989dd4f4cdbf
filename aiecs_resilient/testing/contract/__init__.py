"""The public contract suite: what every backend, every layer and every chain promises, as tests to inherit.

Subclass it in your own tests (it needs pytest and pytest-asyncio) and give it an open backend::

    class TestMine(StorageContract):
        @pytest.fixture
        async def storage(self):
            async with MyBackend(...) as backend:
                yield backend

The fixture may give a store, a layer over one, a whole chain, or the handle of ``open_storage``. Whoever changes a promise
overrides that one test and says why; whoever offers only some of the interfaces combines the topics it needs:
:class:`StorageContract` is nothing but all of them. A store that can be a leg of ``dual_write`` also inherits
:class:`ReplicaContract`.
"""

from __future__ import annotations

import pytest

_TOPICS = ("_base", "sessions", "conversations", "checkpoints", "task_contexts", "identity", "ids", "values",
           "lifecycle", "concurrency", "listing", "_mutations", "replication", "convergence")  # fmt: skip
pytest.register_assert_rewrite(*(f"{__name__}.{topic}" for topic in _TOPICS))  # before they are imported

# ruff: noqa: E402
from ._base import ContractBase
from .checkpoints import CheckpointContract, PendingWritesContract
from .concurrency import ConcurrencyContract
from .convergence import ConvergenceContract
from .conversations import ConversationContract
from .identity import IdentityContract
from .ids import HOSTILE_IDS, IdContract
from .lifecycle import LifecycleContract
from .listing import DeletionContract, ListingContract
from .replication import ReplicationContract
from .sessions import SessionContract
from .task_contexts import TaskContextContract
from .values import ValueContract


class StorageContract(
    SessionContract,
    ConversationContract,
    CheckpointContract,
    PendingWritesContract,
    TaskContextContract,
    IdentityContract,
    IdContract,
    ValueContract,
    ListingContract,
    DeletionContract,
    LifecycleContract,
    ConcurrencyContract,
):
    """Everything an application may rely on, whatever it is made of."""


class ReplicaContract(ReplicationContract, ConvergenceContract):
    """What ``dual_write`` relies on in each of its two stores. For stores, not for chains."""


__all__ = [
    "HOSTILE_IDS",
    "CheckpointContract",
    "ConcurrencyContract",
    "ContractBase",
    "ConvergenceContract",
    "ConversationContract",
    "DeletionContract",
    "IdContract",
    "IdentityContract",
    "LifecycleContract",
    "ListingContract",
    "PendingWritesContract",
    "ReplicaContract",
    "ReplicationContract",
    "SessionContract",
    "StorageContract",
    "TaskContextContract",
    "ValueContract",
]

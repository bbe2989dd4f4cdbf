"""What a server says of itself: who it is, what its acknowledgement survives, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...records import Durability
from ._scripts import Command

Info = Mapping[str, str]
SECTIONS = ("server", "replication", "persistence", "memory", "cluster")


def info_commands() -> list[Command]:
    """One command per section, because older servers take one only; then what INFO does not tell."""
    return [*[("INFO", section) for section in SECTIONS], ("CONFIG", "GET", "appendfsync")]


def parse_info(replies: Sequence[Any]) -> Info | None:
    """The answers to :func:`info_commands` as one mapping, ``appendfsync`` included; None if INFO is forbidden."""
    *sections, config = replies
    info: dict[str, str] = {}
    for section in sections:
        if not isinstance(section, bytes):
            return None
        for line in section.decode(errors="replace").splitlines():
            name, colon, value = line.partition(":")
            if colon:
                info[name] = value
    match config:
        case [_, bytes(setting)]:
            info["appendfsync"] = setting.decode()
        case _:
            pass  # forbidden
    return info


def incarnation(info: Info) -> str:
    """Changes when the server restarts or is replaced: only then may it have lost its tail."""
    return f"{info.get('run_id', '?')}/{info.get('master_replid', '?')}"


def evicts(info: Info) -> bool:
    """May it throw away what it acknowledged, to make room?"""
    return info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy") != "noeviction"


def durability(info: Info | None) -> Durability:
    """What an acknowledgement survives. Without an append-only file a snapshot alone counts as nothing.

    A killed server loses no write that is in the file's buffer of the operating system, whatever ``appendfsync``
    says; only ``always`` waits for the disk. What cannot be read counts as volatile.
    """
    if info is None or info.get("aof_enabled") != "1" or evicts(info):
        return Durability.VOLATILE
    return Durability.HOST if info.get("appendfsync") == "always" else Durability.PROCESS


def issues(info: Info | None) -> list[str]:
    """What keeps it from being healthy, in words, with the remedy."""
    if info is None:
        return ["INFO is forbidden to this user, so persistence and memory cannot be checked"]
    found: list[str] = []
    if info.get("role") not in (None, "master"):
        found.append(f"it is a {info['role']} and takes no writes")
    if info.get("loading") not in (None, "0"):
        found.append("it is still loading its data")
    if info.get("aof_enabled") == "1" and info.get("aof_last_write_status") not in (None, "ok"):
        found.append("its last write to the append-only file failed: look at its disk")
    if info.get("rdb_last_bgsave_status") not in (None, "ok"):
        found.append("its last background save failed: look at its disk and memory")
    if evicts(info):
        found.append(
            f"maxmemory-policy {info.get('maxmemory_policy')} evicts acknowledged data: set it to noeviction"
        )
    used, limit = int(info.get("used_memory", "0")), int(info.get("maxmemory", "0"))
    if limit and used > 0.9 * limit:
        found.append(f"it uses {used:,} of {limit:,} bytes of maxmemory and will refuse writes when full")
    return found

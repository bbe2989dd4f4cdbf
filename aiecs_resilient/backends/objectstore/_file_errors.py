"""What the file system says, as what this library says: the one place where its errors are mapped."""

from __future__ import annotations

import errno
from pathlib import Path

from ...errors import Outcome, StorageConnectionError, StorageError

_MEANINGS: dict[int, str] = {
    errno.ENOSPC: "the disk that holds {root} is full: free space on it",
    errno.EDQUOT: "this user's share of the disk that holds {root} is used up: free space, or raise the quota",
    errno.EROFS: "{root} is on a file system that cannot be written: mount it writable",
    errno.EACCES: "{root} may not be written: give this user write access to it and to everything in it",
    errno.EPERM: "{root} may not be written: give this user write access to it and to everything in it",
    errno.EIO: "the disk that holds {root} reports an error: look at the system's log",
    errno.EMFILE: "this process has too many files open: raise its limit, or lower max_concurrency",
    errno.ENFILE: "this machine has too many files open",
    errno.ENOTDIR: "{root} is not a folder, or something in it is not: name another folder",
    errno.ENOENT: "something in {root} was removed by somebody else",
    errno.ENAMETOOLONG: "{root} is too long a path for this file system: name a shorter one",
    errno.ENOLCK: "{root} is on a file system without locks: use a local disk",
    errno.EOPNOTSUPP: "{root} is on a file system without locks: use a local disk",
    errno.ESTALE: "the network file system that holds {root} went away",
}
_NOTHING_DONE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOLCK, errno.EMFILE, errno.ENFILE})


def map_error(error: OSError, root: Path, name: str, outcome: Outcome) -> StorageError:
    """Ours for an OSError. Nothing is renamed into its place before it is whole, so a full disk has changed nothing."""
    code = error.errno or 0
    what = _MEANINGS.get(code, "the disk that holds {root} cannot do what was asked").format(root=root)
    if code in _NOTHING_DONE or code in (errno.ENOSPC, errno.EDQUOT):
        outcome = "not_applied"
    return StorageConnectionError(f"{what} ({error})", outcome=outcome, backend=name)

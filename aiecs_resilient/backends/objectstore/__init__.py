"""The ``objectstore`` backend: ``file://``, ``s3://``, ``gs://`` and ``az://`` under one contract.

From the outside in: :mod:`.backend` (the class), :mod:`._commit` (compare-and-set, group commit), :mod:`._prepare` (what a
commit writes), :mod:`._draft` and :mod:`._view` (one key as tables), :mod:`._tree` (pages), :mod:`._objects` (what is needed of
a store), :mod:`._files` and :mod:`._cloud` (the stores).
"""

from .backend import FileStorageBackend, GCSStorageBackend, ObjectStorageBackend, S3StorageBackend

__all__ = ["FileStorageBackend", "GCSStorageBackend", "ObjectStorageBackend", "S3StorageBackend"]

"""Real Valkey and PostgreSQL servers, and emulated object stores, on free loopback ports, without root and without containers.

A store's failure cannot be believed from a mock: tests, demo and campaign kill, pause and restart real processes.
Binaries come from the extra `servers` or from PATH. Standard library only, so that a fault scenario can import it
anywhere.
"""

from ._base import Server
from ._errors import ServerError, ServerNotInstalledError
from .objectstores import GCSServer, S3Server
from .postgresql import PostgreSQLServer, find_postgresql_bin
from .valkey import ValkeyServer, find_valkey_binary

__all__ = [
    "GCSServer",
    "PostgreSQLServer",
    "S3Server",
    "Server",
    "ServerError",
    "ServerNotInstalledError",
    "ValkeyServer",
    "find_postgresql_bin",
    "find_valkey_binary",
]

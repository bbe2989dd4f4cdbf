"""Tools to prove a storage chain: real servers, a fault proxy, a history checker, a contract suite. Public API."""

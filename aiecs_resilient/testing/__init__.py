"""Tools to prove a storage chain. Public API; each module is imported on its own.

``campaign``  harms a chain's stores under load and has ``check_history`` judge what came of it
``contract``  the contract suite: subclass it for any backend, layer or chain (needs pytest)
``clock``     an event loop in virtual time, and a wall clock that moves only when told
``history``   what was asked and answered, as a file; ``check_history`` judges it without importing the library
``proxy``     a TCP proxy that injects network faults
``servers``   real PostgreSQL and Valkey servers that can be killed, stopped and restarted, and are never left behind

Nothing is imported here, so that a program that only needs the servers does not need pytest.
"""

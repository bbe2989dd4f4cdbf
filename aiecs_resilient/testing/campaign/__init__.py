"""Harm a chain's stores while it works, and have a separate program say whether anything was lost.

One episode: a bounded load of sessions, messages, counters, checkpoints and contexts goes through the chain and is written
down; a scenario kills, stops and cuts; everything is healed; when the chain says that both stores are complete, each is read
back on its own, without the chain, and ``check_history.py`` compares them with what callers were told::

    async with redis_postgresql(seed=7) as stage:                     # or a Stage of your own: a chain, its stores
        verdict = await run(SCENARIOS["primary killed"], stage, seed=7, seconds=5.0)
    assert verdict.ok, verdict                                        # prints what failed, and the seed

``workload``   what callers do, and what they were told
``stage``      a chain and the stores that can be harmed; ``chains`` has the shipped ones
``scenarios``  what goes wrong, as small coroutines; one that injected no fault fails
``runner``     one episode from the first call to the verdict
``process``    the same for our own process, killed in the middle of its writes
"""

from .chains import postgresql_sqlite, redis_postgresql
from .process import run_killed
from .runner import run
from .scenarios import SCENARIOS, Scenario, Trouble
from .stage import Stage, Store
from .verdict import Verdict
from .workload import Load

__all__ = [
    "SCENARIOS",
    "Load",
    "Scenario",
    "Stage",
    "Store",
    "Trouble",
    "Verdict",
    "postgresql_sqlite",
    "redis_postgresql",
    "run",
    "run_killed",
]

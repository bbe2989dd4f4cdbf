"""The demonstration: real servers, real dialogues, a primary that is killed and frozen, and a count of what was lost.

``aiecs-resilient demo`` runs it. Read it in this order: ``phases`` (what is done to the primary), ``workload`` (what the
application does meanwhile), ``outside_check`` (how both stores are read back without this library), ``verdict``.
"""

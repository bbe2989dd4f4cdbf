"""YAML into a validated plan of a chain, or errors that say file, line, column, what is allowed and the nearest name.

The way of a configuration: :mod:`.loader` (text or mapping to nodes that know their place) → :mod:`.environment`
(``${VARIABLE}``) → :mod:`.reader` (nodes to a :class:`.models.Plan`, options checked against the constructors'
signatures by :mod:`.options`) → :mod:`.rules` (the order of layers). :mod:`aiecs_resilient.assembly` builds the chain.
Imported on use: pydantic and PyYAML cost a fifth of a second.
"""

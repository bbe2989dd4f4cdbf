"""``${NAME}`` and ``${NAME:-default}`` in any scalar; ``$$`` is one dollar sign.

As in a shell, the default counts when the variable is unset or empty. What comes out is never substituted again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_TOKEN = re.compile(r"\$\$|\$\{([^{}$]*)\}|\$\{")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Substituted:
    """A scalar after substitution.

    Attributes:
        text: what it is now.
        variables: names that it came from, in order.
        defaulted: every variable was unset, so the text is the file's own.
        errors: (what is wrong, missing variable or None).
    """

    text: str
    variables: tuple[str, ...] = ()
    defaulted: bool = False
    errors: tuple[tuple[str, str | None], ...] = ()


def substitute(text: str, environment: Mapping[str, str]) -> Substituted:
    """Put variables in; what is missing is told, not raised, so that one run reports everything."""
    if "$" not in text:
        return Substituted(text)
    variables: list[str] = []
    errors: list[tuple[str, str | None]] = []
    from_environment = False

    def replace(match: re.Match[str]) -> str:
        nonlocal from_environment
        if match.group() == "$$":
            return "$"
        inside = match.group(1)
        if inside is None:
            errors.append(
                ("'${' without its '}' ('$${' stands for a plain '${'; defaults cannot nest)", None)
            )
            return ""
        name, has_default, default = inside.partition(":-")
        if _NAME.fullmatch(name) is None:
            errors.append((f"{name!r} is no name of an environment variable", None))
            return ""
        variables.append(name)
        value = environment.get(name)
        if value or (value is not None and not has_default):
            from_environment = True
            return value
        if not has_default:
            errors.append((f"environment variable {name} is not set", name))
        return default

    result = _TOKEN.sub(replace, text)
    return Substituted(result, tuple(variables), bool(variables) and not from_environment, tuple(errors))

"""Finds the fenced snippets of a Markdown page, so that what the page shows can be run."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}) *(?P<language>[\w+-]*)[^\n`]*$")


@dataclass(frozen=True)
class Snippet:
    """One fenced block: where it begins, the language it claims, its text without the page's indentation."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    """All fenced blocks of a page, in order. An unclosed fence is an error, not a block to the end."""
    found: list[Snippet] = []
    opening: re.Match[str] | None = None
    begin, block = 0, list[str]()
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if opening is None:
            opening = FENCE.match(line)
            begin, block = number, []
        elif line.strip() == opening["fence"]:
            found.append(Snippet(page.name, begin, opening["language"].lower(), "\n".join([*block, ""])))
            opening = None
        else:
            block.append(line.removeprefix(opening["indent"]))
    if opening is not None:
        raise ValueError(f"{page.name}:{begin}: this fence is never closed")
    return found


def commands(snippet: Snippet) -> list[str]:
    """The command lines of a shell snippet: no prompt, no comment, no output, continued lines joined."""
    lines = snippet.text.replace("\\\n", " ").splitlines()
    prompted = any(line.startswith("$ ") for line in lines)
    kept = [line.removeprefix("$ ") for line in lines if line.startswith("$ ") or not prompted]
    stripped = [re.sub(r"(^|\s)#.*$", "", line).strip() for line in kept]
    return [part.strip() for line in stripped for part in re.split(r"&&|\|\||;|\|", line) if part.strip()]

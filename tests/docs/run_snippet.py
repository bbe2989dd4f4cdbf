"""Runs one Python snippet as a newcomer would in an async prompt: a fresh process, `await` allowed at the top."""

import ast
import asyncio
import inspect
import sys
from pathlib import Path


def main(path: str) -> None:
    code = compile(Path(path).read_text(encoding="utf-8"), path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    # A coroutine comes back only where the snippet awaits at the top; else it has run already.
    result = eval(code, {"__name__": "__main__"})
    if inspect.iscoroutine(result):
        asyncio.run(result)


if __name__ == "__main__":
    main(sys.argv[1])

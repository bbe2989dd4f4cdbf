"""``python -m aiecs_resilient`` is the command ``aiecs-resilient``."""

from .cli import main

main(prog_name="aiecs-resilient")

"""What can be chosen is checked before a server is started."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aiecs_resilient.cli import main
from aiecs_resilient.demo.options import DemoOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 1}, "seconds must be 5 to 600, not 1"),
        ({"seconds": float("nan")}, "seconds must be"),
        ({"sessions": 0}, "sessions must be 1 to 5000, not 0"),
        ({"rate": 1e9}, "rate must be 10 to 5000"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"report": Path("no-such-folder/report.html")}, "there is no folder"),
        ({"report": Path("/")}, "is a folder"),
        ({"config": Path("nowhere.yaml")}, "there is none at nowhere.yaml"),
    ],
)
def test_a_bad_option_names_itself_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    """Every option has limits, and the message says them."""
    with pytest.raises(ValueError, match=message):
        DemoOptions(**options)


def test_the_command_refuses_before_it_starts_anything() -> None:
    """A wrong option is the usage's error, status 2, at once."""
    result = CliRunner().invoke(main, ["demo", "--sessions", "0"])
    assert result.exit_code == 2
    assert "sessions must be 1 to 5000" in result.output

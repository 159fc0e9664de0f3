"""docs/settings.md and the program agree: every setting has its line, and every line its setting."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from perdure.settings import ProviderSettings, Settings, variables_of

PAGE = (Path(__file__).parent.parent / "docs" / "settings.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \|(?: (?P<variables>`[^|]*`) \| (?P<default>[^|]*) \|)? (?P<meaning>[^|]+) \|$", re.M
)
ROWS = {row["name"]: row for row in ROW.finditer(PAGE)}


def as_documented(default: object) -> str:
    """How the page writes a default."""
    if default is None or default in ([], {}):
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_line_with_its_variables_and_default(name: str) -> None:
    """Adding a setting means writing down what it does."""
    assert name in ROWS, f"docs/settings.md has no line for {name}"
    assert ROWS[name]["variables"] == ", ".join(f"`{variable}`" for variable in variables_of(name))
    assert ROWS[name]["default"] == as_documented(Settings.model_fields[name].default)


def test_every_line_has_its_setting() -> None:
    """A setting that is gone is gone from the page."""
    known: set[str] = set()
    for model in (Settings, ProviderSettings):
        assert issubclass(model, BaseModel)
        known |= set(model.model_fields)
    assert set(ROWS) == known


def test_the_example_is_accepted() -> None:
    """What the page shows can be copied."""
    block = re.search(r"```toml\n(.*?)```", PAGE, re.S)
    assert block is not None
    settings = Settings(**tomllib.loads(block[1]))
    assert settings.port == 8290
    assert str(settings.providers["gpu"].base_url) == "http://gpu.lan:8000/v1"

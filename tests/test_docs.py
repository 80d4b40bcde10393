"""The documentation against the code: links lead somewhere, commands parse, tables are those of the result files."""

import re
import shlex
from pathlib import Path

import pytest

from selftaught import cli
from selftaught.report import tables

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
COMMANDS = [
    (page, line)
    for page in PAGES
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    for line in block.splitlines()
    if line.startswith("selftaught ")
]


def named(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_are_those_of_the_result_files(page):
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text, ROOT, str(page)) == text, "run: python -m selftaught.report.tables README.md docs/*.md"


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=named)
def test_commands_parse(page, line):
    arguments, rest = cli._parser().parse_known_args(shlex.split(line, comments=True)[1:])
    assert arguments.takes_fields or not rest
    if arguments.command == "run":
        arguments.overrides = rest
        cli.runs._configure(arguments)


def test_every_command_has_an_example():
    documented = {line.split()[1] for page, line in COMMANDS if page.name == "commands.md"}
    known = "list run resume show reproduce generate score select train evaluate judge patches env"
    assert documented >= set(known.split())


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200

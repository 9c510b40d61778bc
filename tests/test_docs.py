"""What README and docs promise is there: commands with their options, files, and no placeholder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.models import OptionInfo

from tests.cli.test_options import VERBS, parameters

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]
# What was once so stays told in these.
HISTORY = ("CHANGELOG.md", "experiments.md")
GROUPS = {verb.rpartition(" ")[0] for verb in VERBS} - {""}
ANYWHERE = {"--help", "--debug", "--version"}
PLACEHOLDER = re.compile(
    r"\b(TODO|TBD|FIXME|XXX+|MEASURED|lorem ipsum)\b|\?\?\?|^[A-Z_ ]{4,}$", re.M
)


def commands(text: str) -> Iterator[str]:
    """Yield the calls of aegis in code, as they are written."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*(?:\$ )?(?:\S*/)?aegis (.+?)(?:\s+#.*)?$", line):
                yield match[1]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"`aegis ([^`]+)`", prose)


def wrong(command: str) -> str:
    """Return what of a call is not there, or nothing."""
    words = shlex.split(command.replace("'", " ") if command.count("'") % 2 else command)
    if words[0].startswith("-") or not words[0].islower():
        return "" if words[0] in ANYWHERE or words[0].isupper() else words[0]
    for length in (3, 2, 1):
        if (verb := " ".join(words[:length])) in VERBS:
            break
    else:
        rest = " ".join(words).removeprefix(verb)
        known = verb in GROUPS and not (rest and rest.split()[0].islower())
        return "" if known else command
    options = set(ANYWHERE)
    for parameter in parameters(VERBS[verb]):
        if isinstance(parameter.info, OptionInfo):
            declared = (parameter.info.default, *(parameter.info.param_decls or ()))
            options |= {parameter.name, *(name for name in declared if isinstance(name, str))}
            options |= (
                {parameter.name.replace("--", "--no-", 1)} if parameter.type is bool else set()
            )
    used = [word.strip("[]").partition("=")[0] for word in words[length:]]
    return ", ".join(word for word in used if word.startswith("-") and word not in {*options, "-"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_there_with_its_options(page: Path) -> None:
    if page.name not in HISTORY:
        found = {command: wrong(command) for command in commands(page.read_text(encoding="utf-8"))}
        assert not {command: what for command, what in found.items() if what}


def test_commands_are_found_and_mistakes_are_seen() -> None:
    assert len([*commands((ROOT / "README.md").read_text(encoding="utf-8"))]) > 10
    assert wrong("judge x --no-such-option") == "--no-such-option"
    assert wrong("judgement x")
    assert wrong("audit prove LOG")
    assert not wrong("run my.yaml --set train.epochs=1 --no-auto-resume")
    assert not wrong("audit")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_placeholder_and_no_link_into_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not PLACEHOLDER.search(prose)
    assert not re.search(r"^(#+) [^\n]*\n+\1 ", prose, re.MULTILINE), "a section without a word"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), link

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis.cli import autostart as verb
from aegis.errors import ConfigError
from aegis.runs import autostart
from tests.runs.test_autostart import SYSTEMS, Recorder, found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, a config in the working folder, and start-up systems that always say
    yes."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "c.yaml").write_text("runs: runs\n", encoding="utf-8")
    monkeypatch.chdir(work)
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "USERPROFILE", "LOCALAPPDATA"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setattr(autostart, "run_command", Recorder("print", "/Query"))
    monkeypatch.setattr(shutil, "which", found)
    return home


def spoken(*arguments: str) -> str:
    result = CliRunner().invoke(
        verb.app, list(arguments), catch_exceptions=False, standalone_mode=False
    )
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.mark.parametrize("system", SYSTEMS)
def test_show_install_and_remove_tell_the_same(system: str, home: Path) -> None:
    option = ("--system", system)
    text = spoken("show", "c.yaml", *option)
    shown = json.loads(spoken("show", "c.yaml", *option, "--json"))
    assert not list(home.iterdir())
    assert (shown["text"], shown["system"]) == (text, system)
    assert shown == json.loads(spoken("install", "c.yaml", *option, "--json"))
    path = Path(shown["path"])
    assert path.read_text(encoding="utf-8") == text
    assert path.is_relative_to(home)
    said = spoken("install", "c.yaml", *option)
    assert str(path) in said
    assert all(command in said for command in shown["commands"])
    Path("c.yaml").unlink()  # removing asks nothing of the config
    assert f"removed  {path}" in spoken("remove", "c.yaml", *option)
    assert f"{shown['name']} is not installed" in spoken("remove", "c.yaml", *option)
    assert json.loads(spoken("remove", "c.yaml", *option, "--json")) == {
        **shown,
        "text": "",
        "commands": [],
    }


def test_a_bad_config_is_refused_before_anything_is_written(home: Path) -> None:
    for action in ("show", "install"):
        with pytest.raises(ConfigError, match="cannot be read"):
            spoken(action, "missing.yaml")
    Path("c.yaml").write_text("epochs: 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="epochs is not a setting"):
        spoken("install", "c.yaml")
    assert not list(home.iterdir())

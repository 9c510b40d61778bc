"""What a step's fingerprint follows from."""

from __future__ import annotations

from typing import Any

import pytest

from aegis.config import Config, parse_config
from aegis.pipeline.context import StepContext
from aegis.pipeline.step import Step, read_settings


def context(contents: dict[str, dict[str, str]], **settings: Any) -> StepContext:
    nothing: Any = None
    config = parse_config(settings, where="t")
    return StepContext(config, nothing, nothing, nothing, nothing, contents)


def step(version: int = 1, outside: str = "x") -> Step:
    inputs = ("raw", lambda _: outside)
    return Step("one", version, inputs, ("seed", "train.ppo"), lambda *_: None)


def test_a_fingerprint_follows_version_settings_and_inputs() -> None:
    raw = {"raw": {"file": "1"}}
    before = step().fingerprint(context(raw))
    assert step().fingerprint(context(raw | {"other": {"file": "2"}}, train={"lr": 1.0})) == before
    changed = [
        step(version=2).fingerprint(context(raw)),
        step(outside="y").fingerprint(context(raw)),
        step().fingerprint(context({"raw": {"file": "2"}})),
        step().fingerprint(context({})),
        step().fingerprint(context(raw, seed=1)),
        step().fingerprint(context(raw, train={"ppo": {"lr": 1.0}})),
    ]
    assert len({before, *changed}) == 7


def test_the_folder_is_named_like_the_step_unless_it_says_another() -> None:
    assert step().artifact == "one"
    assert Step("one", 1, (), (), lambda *_: None, artifact="two").artifact == "two"


def test_the_settings_of_a_step_are_read_by_path() -> None:
    config = Config()
    ppo = config.train.ppo.model_dump(mode="json")
    found = read_settings(config, ("seed", "train.lr", "train.ppo"))
    assert found == {"seed": 0, "train.lr": config.train.lr, "train.ppo": ppo}
    with pytest.raises(KeyError):
        read_settings(config, ("train.no_such",))

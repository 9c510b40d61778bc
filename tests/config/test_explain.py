from __future__ import annotations

import pytest

from aegis.config import Config, Settings
from aegis.config.explain import Explanation, explain
from aegis.errors import ConfigError


def every(explanation: Explanation) -> list[Explanation]:
    return [
        explanation,
        *(part for setting in explanation.settings for part in every(setting)),
    ]


@pytest.mark.parametrize("setting", every(explain()), ids=lambda setting: setting.key)
def test_every_setting_says_what_it_is(setting: Explanation) -> None:
    assert setting.description.endswith((".", ".)"))
    assert setting.type


def is_ours(kind: type) -> bool:
    """Whether a section is the package's own, and not made by some other test."""
    return kind.__module__.startswith("aegis.")


def test_every_field_of_every_section_is_described() -> None:
    sections = [Settings]
    for section in sections:
        sections += [kind for kind in section.__subclasses__() if is_ours(kind)]
        assert all(field.description for field in section.model_fields.values()), section


def test_a_setting_is_explained_with_type_bounds_and_default() -> None:
    setting = explain("train.reward.lora.rank")
    assert (setting.type, setting.bounds, setting.default) == ("integer", ">= 1, <= 4096", 8)
    assert explain("train.ppo.clip").bounds == "> 0, < 1"
    assert explain("model.gates.lm_head").type == "auto | true | false"
    assert explain("data.records").type == "list of text"
    assert explain("model.lora.layers").type == "[number, number]"
    assert explain("train.datasets.path").default == "required"


def test_a_section_lists_its_settings() -> None:
    assert [setting.key for setting in explain().settings] == list(Config.model_fields)
    assert "train.ppo.weights" in [setting.key for setting in explain("train.ppo").settings]


@pytest.mark.parametrize(
    ("key", "near"),
    [("trian.lr", "train.lr"), ("train.ppo.klip", "train.ppo.clip"), ("silence_s", "durable.s")],
)
def test_an_unknown_key_names_the_nearest(key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is not a setting; did you mean {near}") as caught:
        explain(key)
    assert caught.value.exit_code == 2

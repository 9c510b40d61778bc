from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from aegis.config import Config
from aegis.errors import BadInputError
from aegis.tune.space import check_space, read_plan, shipped_studies, with_settings
from tests.tune.studies import STUDY, write_study


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_fit_the_quickstart(name: str) -> None:
    from aegis.config import load_config

    quickstart = load_config(Path(__file__).parents[2] / "examples" / "quickstart.yaml")
    plan = read_plan(name)
    assert check_space(plan, quickstart).train.algorithm == "sft"
    assert plan.about


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1e-4, 1e-2]", "[1e-2, 1e-4]", "min must be below max"),
        ("[1e-4, 1e-2]", "[1, 1]", "min must be below max"),
        ("[1e-4, 1e-2]", "[0, 1e-2]", "log needs min > 0"),
        ("[1e-4, 1e-2]", "[1e-4]", "must be two numbers"),
        ("[1e-4, 1e-2]", "[true, 2]", "must be two numbers"),
        ("float: [1e-4, 1e-2]", "int: [1.5, 3]", "whole numbers"),
        ("float: [1e-4, 1e-2]", "float: 3", "must be a list"),
        ("float: [1e-4, 1e-2]", "step: 3", "did you mean"),
        ("log: true", "log: 3", "log must be true or false"),
        ("log: true", "if: {model.lora.rank: 4}", "stands above"),
        ("[4, 8, 16]", "[4]", "at least two different"),
        ("[4, 8, 16]", "[4, 4]", "at least two different"),
        ("train.lr", "train.learning", "train.learning is not a setting; did you mean train."),
        ("train.lr", "learning_rate", "did you mean train.lr"),
        ("train.lr", "train", "is a group of settings"),
        ("normalised_loss", "normalized_loss", "did you mean normalised_loss?"),
        ("normalised_loss: 10", "normalised_loss: 0", "other than 0"),
        ("pruner: none", "pruner: some", "pruner must be one of"),
        ("space:", "spaces:", "did you mean space?"),
        ("train.algorithm: sft", "train.algorithms: sft", "is not a setting"),
    ],
)
def test_mistakes_in_a_study_are_told_with_their_place(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in STUDY
    study = write_study(tmp_path, STUDY.replace(old, new, 1))
    with pytest.raises(BadInputError, match=r"mine.yaml") as error:
        read_plan(study)
    assert message in str(error.value)


def test_an_end_of_the_space_that_the_config_forbids_is_told_before_a_trial(tmp_path: Path) -> None:
    plan = read_plan(write_study(tmp_path, STUDY.replace("[4, 8, 16]", "[4, 8000]")))
    with pytest.raises(BadInputError, match=r"space: 8000: model.lora.rank.*4096"):
        check_space(plan, Config())


def test_an_unknown_study_names_those_that_are_shipped() -> None:
    with pytest.raises(BadInputError, match="alpha-schedule"):
        read_plan("alpha")


def test_a_conditional_setting_is_drawn_only_where_its_condition_holds() -> None:
    plan = read_plan("alpha-schedule")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [plan.suggest(study.ask()) for _ in range(30)]
    shapes: dict[str, set[bool]] = {}
    for settings in drawn:
        shapes.setdefault(settings["train.anneal.shape"], set()).add(
            "train.anneal.steepness" in settings
        )
    assert shapes == {"sigmoid": {True}, "linear": {False}, "cosine": {False}}


@pytest.mark.parametrize(
    ("setting", "value", "read"),
    [("train.loss.pet", 0.5, (0.5, 0.5, 0.5)), ("model.lora.layers", [0.5, 1.0], (0.5, 1.0))],
)
def test_a_list_of_numbers_takes_one_value_for_all(setting: str, value: Any, read: Any) -> None:
    config = with_settings(Config(), {setting: value}, where="test")
    group = config.train.loss.pet if "loss" in setting else config.model.lora.layers
    assert group == read


def test_the_identity_is_of_the_space_and_not_of_the_words(tmp_path: Path) -> None:
    plan = read_plan(write_study(tmp_path))
    same = read_plan(write_study(tmp_path, "about: other words\n" + STUDY))
    other = read_plan(write_study(tmp_path, STUDY.replace("[4, 8, 16]", "[4, 8, 32]")))
    assert plan.identity() == same.identity() != other.identity()

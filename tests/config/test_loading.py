from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.config import Config, dump_yaml, load_config, parse_config
from aegis.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_load(path: Path) -> None:
    assert load_config(path).base


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == Config()


def test_overrides_win_and_are_typed(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {lr: 1.0e-3}\n")
    config = load_config(
        path, ["train.lr=2e-4", "model.gates.lm_head=false", "data.records=[a.jsonl]", "base=x/y"]
    )
    assert config.train.lr == 2e-4
    assert config.model.gates.lm_head is False
    assert config.data.records == ("a.jsonl",)
    assert config.base == "x/y"


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "train: {lr: 1e-4}")).train.lr == 1e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", "trian is not a setting; did you mean 'train'"),
        ("train: {epoch: 2}", "train.epoch is not a setting; did you mean 'epochs'"),
        ("model: {lora: {rnk: 4}}", "model.lora.rnk is not a setting; did you mean 'rank'"),
        ("model: {lora: {zzzzzz: 4}}", "known keys: rank"),
        ("train: {lr: fast}", "train.lr: .*number.*got 'fast'"),
        ("train: {lr: -1}", "train.lr: .*greater than 0, got -1"),
        ("train: {lr: .nan}", "train.lr: .*finite|train.lr: .*greater"),
        ("train: {batch_tokens: 0}", "train.batch_tokens: .*greater than or equal to 1, got 0"),
        ("train: {batch_tokens: 1.5}", "train.batch_tokens: .*integer, got 1.5"),
        (
            "model: {gates: {mode: mixed}}",
            "model.gates.mode: .*'geodesic' or 'additive', got 'mixed'",
        ),
        ("model: {lora: {layers: [0.2]}}", "model.lora.layers"),
        (
            "data: {split: {test: 0.6, validation: 0.5}}",
            "data.split: .*leave something to train on",
        ),
        ("data: {seed_records: false}", "data: .*needs a source of records"),
        ("data: {split: {test: 0}}", "data.split.test: .*greater than 0, got 0"),
        ("model: {gates: {layers: [0.7, 0.2]}}", "model.gates.layers: .*must not be larger"),
        (
            "train: {anneal: {warmup: 0.6, annealing: 0.6}}",
            "train.anneal: warmup . annealing must be at most 1",
        ),
        ("train: {anneal: {end: .inf}}", "train.anneal.end: .*finite"),
        ("data: {quality: {min_characters: 9000}}", "data.quality: min_characters must be at most"),
        ("seed: yes", "seed: .*integer, got True"),
        ("- a\n- b", "must hold keys and values, got list"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_settings_are_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(written(tmp_path, text))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("override", ["train.lr", "=3", "base.x=3", "train.lr=[1"])
def test_bad_overrides_are_told(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set"):
        load_config(written(tmp_path, "base: x"), [override])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_what_is_written_loads_as_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["train.datasets=[{path: a.jsonl, weight: 1e-5}]"])
    assert load_config(written(tmp_path, dump_yaml(config))) == config


def reloaded(config: Config) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        return load_config(written(Path(folder), dump_yaml(config)))


@settings(deadline=None)
@given(
    st.text(min_size=1) | st.sampled_from(["1e-3", "yes", "null", "0x1F", "1:30", "~", "a\x85b"])
)
def test_text_is_written_as_text(text: str) -> None:
    config = parse_config({"base": text, "model": {"system_prompt": text}}, where="test")
    assert reloaded(config) == config


@settings(deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_numbers_are_written_to_the_last_bit(number: float) -> None:
    config = parse_config({"train": {"lr": number}}, where="test")
    assert reloaded(config).train.lr == number

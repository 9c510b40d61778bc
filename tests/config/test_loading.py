from __future__ import annotations

import operator
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis.config import Config, dump_yaml, load_config, parse_config
from aegis.config.explain import OTHER_NAMES, explain
from aegis.errors import ConfigError

EXAMPLES = Path(__file__).parents[2] / "examples"
OF_OTHER_VERBS = {"cluster.yaml", "sites.yaml", "topics_ja.yaml"}
CONFIGS = sorted(path for path in EXAMPLES.glob("*.yaml") if path.name not in OF_OTHER_VERBS)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_examples_load(path: Path) -> None:
    assert load_config(path).base


def test_no_settings_are_the_defaults_where_that_is_said(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "{}")) == Config()


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
        ("", "holds no setting; write one, or {} for the defaults"),
        ("# seed: 1\n", "holds no setting"),
        ("---\n", "holds no setting"),
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


@pytest.mark.parametrize(
    ("text", "parts"),
    [  # a key twice: which, both lines
        ("train: {epochs: 5}\nseed: 1\ntrain:", ("'train' is given twice", "and on line 3")),
        ("train:\n  lr: 1\n  lr: 2", ("'lr' is given twice", "line 2 and on line 3")),
        ('base: x\n"base": y', ("'base' is given twice", "line 1 and on line 2")),
        ("train: {lr: 1, lr: 2}", ("'lr' is given twice", "on line 1")),
        ("train: {datasets: [{path: a, path: b}]}", ("'path' is given twice",)),
        # white space and marks as they are typed by hand
        ("train:\n\u3000epochs: 2", ("line 2", "U+3000 (ideographic space)", "plain spaces")),
        ("train:\n  lr: 1\n\u3000epochs: 2", ("line 3", "U+3000")),
        ("train:\n  lr: 1\n \u3000epochs: 2", ("line 3", "U+3000")),
        ("train:\n\xa0\xa0epochs: 2", ("line 2", "U+00A0 (no-break space)")),
        ("train:\n\tepochs: 2", ("line 2", "U+0009 (tab)", "indent with spaces")),
        ("train:\n  lr: 1\n\tepochs: 2", ("line 3", "U+0009 (tab)")),
        ("data:\n  records:\n\u3000- a.jsonl", ("line 3", "U+3000")),
        ("base:\u3000x\nseed: 1", ("U+3000",)),
        ("base: x\u3000", ("line 1", "U+3000")),
        ("base: x\u200b", ("line 1", "U+200B (zero width space)")),
        ("base: x\nseed：1", ("line 2", "U+FF1A (fullwidth colon)")),
        ("base: x\x07", ("line 1", "U+0007")),
        ("seed: ２", ("got '２'",)),
        ("seed: x　y", (r"got 'x\u3000y'",)),
        # numbers
        (f"seed: {'9' * 5000}", ("line 1", "5,000 digits")),
        (f"train: {{lr: 1{'0' * 400}}}", ("line 1", "401 digits")),
        ("train: {lr: 1e999}", ("train.lr", "finite")),
        ("data: {quality: {balance_ratio: .inf}}", ("data.quality.balance_ratio", "finite")),
        ("seed: !!int x", ("tag (!!)",)),
        ("train: {lr: !!float x}", ("tag (!!)",)),
        ("seed: 1:30", ("integer", "got '1:30'")),
        ("threads: 100000", ("threads", "less than or equal to 1024", "got 100000")),
        ("train: {batch_tokens: 99999999999}", ("less than or equal to 1000000000",)),
        ("train: {epochs: 1e18}", ("train.epochs", "less than or equal to 10000")),
        ("model: {lora: {rank: 99999}}", ("model.lora.rank", "less than or equal to 4096")),
        ("train: {datasets: [{path: x, weight: 1e300}]}", ("weight", "less than or equal to 1000")),
        ("runs: 2026", ("runs", "got 2026", "quotes")),
        # what is no setting, or none here
        ("seed:", ("seed is empty",)),
        ("int: 3", ("int is not a setting",)),
        ("lr: 1e-4", ("did you mean train.lr or train.reward.lr",)),
        ("train: {learning_rate: 1e-4}", ("train.learning_rate is not a setting", "train.lr here")),
        ("ｔｒａｉｎ: {}", ("did you mean 'train'",)),
        ("seed: !!python/object x", ("line 1: could not determine",)),
        ("base: !!timestamp x", ("tag (!!)",)),
        ("base: !!binary eA==", ("tag (!!)",)),
        ("[a]: x", ("a key must be text",)),
        ("<<: 3", ("line 1: while constructing",)),
        ("base: ~nobody-of-this-name/x", ("base", "home")),
        ('runs: "a\\0b"', ("runs: a path must not hold control characters", r"got 'a\x00b'")),
        ('data: {records: ["a\\nb"]}', ("a path must not hold control characters",)),
        # much of it
        ("a: " + "[" * 40 + "]" * 40, ("nested more than",)),
        ("a: " + "[" * 3000, ("nested more than",)),
        ("? " * 3000, ("nested more than",)),
        ("a: &a [*a]", ("nested more than",)),
        ("\n".join(f"{'abcdefghi'[n]}: &{'abcdefghi'[n]} [{'*' * (n > 0)}"
                    f"{(', *' if n else ', ').join('xabcdefgh'[n] * 9)}]" for n in range(9)),
         ("more than 20,000 values", "aliases")),
        ("#" * 200_000, ("longer than 131,072 characters",)),
        ("\n".join(f"a{n}: 1" for n in range(999)), ("a0 is not a setting", "and 991 more")),
    ],
)  # fmt: skip
def test_what_was_typed_is_not_lost_in_silence(
    tmp_path: Path, text: str, parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, text))
    for part in parts:
        assert part in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("text", "setting", "value"),
    [
        ("seed: 010", "seed", 10),
        ("seed: 0x10", "seed", 16),
        ("seed: 1_000", "seed", 1000),
        ("train:\nseed: 3", "train.epochs", 2.0),
        ("train:\n  loss:\n  lr: 1", "train.loss.final", 1.0),
        ("model: {gates: {lm_head: on}}", "model.gates.lm_head", True),
        ("train: {lr: .5}", "train.lr", 0.5),
        ("runs: 2026-01-01", "runs", "2026-01-01"),
        ("base: 12:30", "base", "12:30"),
        ("base: \"x\u3000\"", "base", "x\u3000"),
        ("base: \u65e5\u672c\u3000\u8a9e", "base", "\u65e5\u672c\u3000\u8a9e"),
        ("model:\n  system_prompt: |\n    \u3000x", "model.system_prompt", "\u3000x"),
        ("train: {reward: &r {lr: 1}, dpo: {<<: *r, beta: 2}}", "train.dpo.lr", 1),
        ("train: {reward: &r {lr: 1}, dpo: {lr: 3, <<: [*r]}}", "train.dpo.lr", 3),
        ("seed: 1\r\nbase: x\r\n", "base", "x"),
        ("\ufeffbase: x", "base", "x"),
    ],
)  # fmt: skip
def test_what_was_typed_is_taken_as_meant(
    tmp_path: Path, text: str, setting: str, value: object
) -> None:
    config = load_config(written(tmp_path, text))
    assert operator.attrgetter(setting)(config) == value


def test_every_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    settings = ["base=~/x", "runs=~/x", "data.records=[~/x]", "data.pairs=[~/x]"]
    settings += ["data.generate.topics=~/x", "train.datasets=[{path: ~/x}]"]
    config = load_config(written(tmp_path, "{}"), settings)
    paths = [config.base, config.runs, *config.data.records, *config.data.pairs]
    paths += [config.data.generate.topics or "", config.train.datasets[0].path]
    assert paths == [str(tmp_path / "x")] * 6
    assert load_config(written(tmp_path, "runs: x~")).runs == "x~"


def test_a_file_is_read_as_its_mark_says_and_other_encodings_are_told(tmp_path: Path) -> None:
    path, text = tmp_path / "config.yaml", "base: もでる\n"
    for encoding in ("utf-8-sig", "utf-16", "utf-32"):
        path.write_text(text, encoding=encoding)
        assert load_config(path).base == "もでる"
    for encoding, told in {"cp932": "Shift_JIS", "euc_jp": "EUC-JP", "utf-16-le": "UTF-16"}.items():
        path.write_bytes(text.encode(encoding))
        with pytest.raises(ConfigError, match=f"{told}.*save the file as UTF-8"):
            load_config(path)


def test_a_group_set_by_an_override_changes_only_what_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, "train: {epochs: 5, lr: 1}\nmodel:\n")
    config = load_config(path, ["train={lr: 2}", " seed = 010", "model.lora.rank=3"])
    assert (config.train.epochs, config.train.lr, config.seed) == (5, 2, 10)
    assert config.model.lora.rank == 3


@pytest.mark.parametrize(("name", "setting"), OTHER_NAMES.items())
def test_names_of_other_trainers_lead_to_ours(tmp_path: Path, name: str, setting: str) -> None:
    assert explain(setting).key == setting
    with pytest.raises(ConfigError, match=f"{setting} here"):
        load_config(written(tmp_path, "{}"), [f"train.{name}=1"])
    with pytest.raises(ConfigError, match=f"did you mean {setting}"):
        explain(name)


@pytest.mark.parametrize(
    "override",
    [
        "train.lr=[1",
        "seed=" + "9" * 5000,
        "train.lr=" + "[" * 2000,
        ".".join("a" * 5000) + "=1",
        "train.lr=.inf",
        "train.\u3000lr=1",
        "seed=1\ud800",
        "train={lr: 1, lr: 2}",
    ],
)
def test_a_strange_override_is_told_in_short(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, "{}"), [override])
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "override",
    [*("train.lr", "=3", "base.x=3", "train.lr=[1"), *("train=", "train=null", "train.ppo=~")],
)
def test_bad_overrides_are_told(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=r"--set"):
        load_config(written(tmp_path, "base: x\ntrain: {lr: 1, ppo: {kl: 1}}"), [override])


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_what_is_written_loads_as_the_same(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["train.datasets=[{path: a.jsonl, weight: 1e-5}]"])
    assert load_config(written(tmp_path, dump_yaml(config))) == config


def reloaded(config: Config) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        return load_config(written(Path(folder), dump_yaml(config)))


@settings(deadline=None)
@given(
    st.text(min_size=1)
    | st.sampled_from(
        ["1e-3", "08", "1_0.5", "x\u3000", "yes", "null", "0x1F", "1:30", "~", "a\x85b"]
    )
)
def test_text_is_written_as_text(text: str) -> None:
    # Somebody's home; and a path has no control characters.
    base = "x" if text.startswith("~") or not text.isprintable() else text
    config = parse_config({"base": base, "model": {"system_prompt": text}}, where="test")
    assert reloaded(config) == config


@settings(deadline=None)
@given(st.floats(min_value=1e-300, max_value=1e300))
def test_numbers_are_written_to_the_last_bit(number: float) -> None:
    config = parse_config({"train": {"lr": number}}, where="test")
    assert reloaded(config).train.lr == number

"""Datasets mixed by weight: which records stay, and nothing held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aegis.config import Config, parse_config
from aegis.data.mixture import check_datasets, mix, mixture_identity
from aegis.data.records import Record, parse_pair, parse_record
from aegis.data.split import split_records
from aegis.errors import ConfigError, DataError
from tests.data.test_records import THINKING

WORDS = ["river", "engine", "paper", "garden", "music", "window", "bread", "winter"]
WORDS += ["stone", "cloud", "forest", "silver", "candle", "bridge", "market", "shadow"]


BODIES = {"thinking": THINKING, "final": "Yes, that is so."}


def row(
    number: int, *, thinking: bool = False, start: str = "own", **changes: Any
) -> dict[str, Any]:
    text = f"{start} {WORDS[number % 16]} {WORDS[number * 7 // 16 % 16]} {number * 7919 % 10007}"
    return {"prompt": text, "decision": "ALLOW", **(BODIES if thinking else {}), **changes}


def records(rows: Sequence[dict[str, Any]], prefix: str = "r") -> list[Record]:
    return [parse_record({"id": f"{prefix}{n}", **raw}, where="t:1") for n, raw in enumerate(rows)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(raw) + "\n" for raw in rows), encoding="utf-8")
    return str(path)


def config(*datasets: tuple[str, float], **changes: Any) -> Config:
    listed = [{"path": path, "weight": weight} for path, weight in datasets]
    return parse_config({"train": {"datasets": listed}, **changes}, where="t")


def test_the_form_with_thinking_is_preferred(tmp_path: Path) -> None:
    own = records([row(0), row(1, thinking=True), row(2), row(3)])
    file = write(
        tmp_path / "a.jsonl", [row(0, thinking=True), row(1), row(4), row(4, thinking=True), row(5)]
    )
    pair = {"prompt": row(3)["prompt"], "chosen": {"decision": "ALLOW", **BODIES}}
    pair |= {
        "rejected": {
            "decision": "REFUSE",
            "thinking": {**THINKING, "policy": "REFUSE"},
            "final": "No.",
        }
    }
    found = mix(config((file, 1.0)), train=own, pairs=[parse_pair(pair, where="t:1")], held_out=[])
    everything = [*found.own.records, *found.others[0].records, *found.validation]
    forms = sorted((record.prompt, record.thinking is not None) for record in everything)
    expected = [(row(n)["prompt"], n in (0, 1, 4)) for n in (0, 1, 2, 4, 5)]  # 3 is the pair's
    assert forms == sorted(expected)


def test_nothing_held_out_is_trained_on(tmp_path: Path) -> None:
    held = records([row(n, start="held out for the very end") for n in range(6)])
    rows = [row(n, start="theirs") for n in range(100)]
    copies = [
        {**row(n, start="held out for the very end"), "prompt": held[n].prompt.upper() + "!"}
        for n in range(6)
    ]
    file = write(tmp_path / "b.jsonl", [*rows, *copies])
    said: list[str] = []
    found = mix(
        config((file, 1.0)), train=records([row(0)]), pairs=[], held_out=held, say=said.append
    )
    trained, checks = found.others[0].records, found.validation
    assert not {r.prompt for r in trained + checks} & {c["prompt"] for c in copies}
    facts = found.facts[1]
    assert (facts["near_held_out"], facts["read"]) == (6, 106)
    assert "near_held_out 6" in said[0]
    assert not {record.prompt for record in trained} & {record.prompt for record in checks}
    assert len(checks) == pytest.approx(8, abs=3)
    by_rule = split_records([*trained, *checks], validation=0.08, test=0.0, seed=0)["validation"]
    assert {record.id for record in by_rule} == {record.id for record in checks}


def test_twins_stay_on_one_side_and_personal_data_is_masked(tmp_path: Path) -> None:
    rows = []
    for number in range(60):
        rows += [
            row(number, id=f"t{number}"),
            row(number, id=f"u{number}", contrast_of=f"t{number}"),
        ]
        rows[-1]["prompt"] += " now"
    rows.append({"prompt": "write to jane.doe@example.com please", "decision": "ALLOW"})
    found = mix(config((write(tmp_path / "c.jsonl", rows), 1.0)), train=[], pairs=[], held_out=[])
    both = (found.others[0].records, found.validation)
    sides = [{record.id[1:] for record in side if record.id[0] in "tu"} for side in both]
    assert not sides[0] & sides[1]
    assert "jane.doe" not in " ".join(
        record.prompt for record in (*found.others[0].records, *found.validation)
    )


def test_own_records_may_have_another_weight(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", [row(n, start="theirs") for n in range(30)])
    own = records([row(n) for n in range(5)])
    light = mix(config(("records", 0.5), (file, 2.0)), train=own, pairs=[], held_out=[])
    assert (light.own.weight, len(light.own.records), light.others[0].weight) == (0.5, 5, 2.0)
    none = mix(config(("records", 0.0), (file, 1.0)), train=own, pairs=[], held_out=[])
    assert none.own.records == []
    theirs = records([row(n, start="theirs") for n in range(30)])
    with pytest.raises(DataError, match="nothing is left to train on"):
        mix(config(("records", 0.0), (file, 1.0)), train=own, pairs=[], held_out=theirs)


def test_a_fingerprint_follows_content_and_weight_not_the_place(tmp_path: Path) -> None:
    rows = [row(n) for n in range(3)]
    here, there = write(tmp_path / "here.jsonl", rows), write(tmp_path / "there.jsonl", rows)
    assert mixture_identity(config()) == []
    assert mixture_identity(config((here, 1.0))) == mixture_identity(config((there, 1.0)))
    assert mixture_identity(config((here, 1.0))) != mixture_identity(config((here, 2.0)))
    assert mixture_identity(config((here, 1.0))) != mixture_identity(
        config((here, 1.0), ("records", 2.0))
    )
    before = mixture_identity(config((here, 1.0)))
    write(tmp_path / "here.jsonl", [*rows, row(4)])
    assert mixture_identity(config((here, 1.0))) != before


def test_mistakes_are_told_with_their_place(tmp_path: Path) -> None:
    from aegis.pipeline import run_pipeline

    missing = config(
        (str(tmp_path / "no.jsonl"), 1.0), base="no/such/model", runs=str(tmp_path / "runs")
    )
    with pytest.raises(DataError, match=r"no\.jsonl: cannot be read"):
        run_pipeline(missing)  # the base comes later, and would be an error, too
    bad = write(tmp_path / "bad.jsonl", [row(0), {**row(1), "decision": "PERHAPS"}])
    with pytest.raises(DataError, match=r"bad\.jsonl:2: decision"):
        check_datasets(config((bad, 1.0)))
    check_datasets(config((bad, 1.0), data={"skip_bad": True}))
    twice = write(tmp_path / "twice.jsonl", [row(0, id="x"), row(1, id="x")])
    with pytest.raises(DataError, match=r"twice\.jsonl: the id 'x' is used more than once"):
        check_datasets(config((twice, 1.0)))


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        (
            [{"path": "a", "weight": -1}],
            "train.datasets.0.weight: .*greater than or equal to 0, got -1",
        ),
        (
            [{"path": "a", "wieght": 1}],
            "train.datasets.0.wieght is not a setting; did you mean 'weight'",
        ),
        ([{"weight": 1}], "train.datasets.0.path: field required"),
        ([{"path": "a"}, {"path": "a"}], "train: datasets names 'a' more than once"),
        (
            [{"path": "records", "weight": 0}],
            "train: datasets must give at least one of them a weight above 0",
        ),
    ],
)
def test_settings_that_cannot_be_meant(datasets: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"train": {"datasets": datasets}}, where="t")

"""What the benchmarks compute besides times: claims, rises, texts, prompts. The benchmarks
themselves are run by hand."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from aegis.data.records import Record
from aegis.engine.verdict import Verdict
from aegis.protocol.decisions import Decision

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A benchmark script as a module; they import one another by their plain names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_a_claim_is_kept_on_the_right_side_of_its_limit(load: Any) -> None:
    claim = load("claims").Claim
    assert claim("most", (0.5, 0.1, 0.9), 0.5, 3).kept
    assert not claim("most", (0.51, 0.1, 0.9), 0.5, 3).kept
    assert claim("least", (0.5, 0.1, 0.9), 0.5, 3, floor=True).kept
    assert not claim("least", (0.49, 0.1, 0.9), 0.5, 3, floor=True).kept
    assert claim("upper end", (-0.1, -0.2, 0.0), 0.0, 3, floor=True, by=2).kept
    assert not claim("upper end", (-0.1, -0.2, -0.01), 0.0, 3, floor=True, by=2).kept


def test_a_report_tells_whether_every_limit_is_kept(
    load: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = load("claims")
    good, bad = (
        claims.Claim("good", (1.0, 1.0, 1.0), 2.0, 4),
        claims.Claim("bad", (3.0, 3.0, 3.0), 2.0, 4),
    )
    assert claims.report([good], json_path=None, details={})
    assert not claims.report(
        [good, bad], lines=["a line"], json_path=tmp_path / "found.json", details={"more": 1}
    )
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [claim["kept"] for claim in found["claims"]] == [True, False]
    assert found["machine"]["python"]
    assert found["more"] == 1
    assert "OVER" in capsys.readouterr().out


def test_intervals_hold_what_they_are_of(load: Any) -> None:
    claims = load("claims")
    value, low, high = claims.median([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (value, low <= value <= high) == (3.0, True)
    assert claims.mean([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_a_rise_is_in_standard_deviations_of_what_was_before(load: Any) -> None:
    before = np.array([0.0, 2.0] * 50)
    value, low, high = load("ppo_learn").rise(before, before + 0.5)
    assert value == pytest.approx(0.5)
    assert low == pytest.approx(0.5, abs=0.03)
    assert high == pytest.approx(0.5, abs=0.03)


def test_texts_come_from_json_lines_or_paragraphs(load: Any, tmp_path: Path) -> None:
    read = load("ppo_learn").read_texts
    (tmp_path / "some.jsonl").write_text(
        '{"question": "one"}\n{"question": "two"}\n', encoding="utf-8"
    )
    (tmp_path / "some.txt").write_text("one\nline\n\ntwo\n\n\nthree", encoding="utf-8")
    assert read(tmp_path / "some.jsonl", 10) == ["one", "two"]
    assert read(tmp_path / "some.txt", 10) == ["one\nline", "two", "three"]
    assert read(tmp_path / "some.txt", 1) == ["one\nline"]
    assert read(None, 10) is None
    (tmp_path / "odd.jsonl").write_text('{"answer": 1}\n', encoding="utf-8")
    with pytest.raises(SystemExit, match="no field of text, context, question, prompt"):
        read(tmp_path / "odd.jsonl", 10)


@pytest.fixture
def judgements(load: Any) -> Any:
    """What a judge and a peer make of 90 unsafe and 60 harmless prompts, the judge better."""
    script, rng = load("decisions"), np.random.default_rng(0)
    decisions = [Decision.REFUSE] * 90 + [Decision.ALLOW] * 60
    records = [
        Record(str(number), "x", decision, "en", "d") for number, decision in enumerate(decisions)
    ]
    shared, harmless = rng.normal(size=150), np.array(decisions) == Decision.ALLOW
    verdicts = {}
    for name, gain in ((script.JUDGE, 1.5), (script.WORDS, 1.0)):
        allowed = 1 / (1 + np.exp(-shared - rng.normal(size=150) - gain * harmless))
        verdicts[name] = [Verdict(Decision.DENY, (p, 0.0, 0.0, 1 - p), 1.0) for p in allowed]
    return script.Judgements(records, np.where(harmless, "good", "bad"), verdicts)


def test_areas_and_their_difference_are_those_of_resampled_prompts(
    load: Any, judgements: Any
) -> None:
    script = load("decisions")
    found = script.compare_areas(judgements, ("bad",), ("good",))
    allowed = {
        name: np.array([verdict.probabilities[0] for verdict in verdicts])
        for name, verdicts in judgements.verdicts.items()
    }
    unsafe, harmless = np.arange(90), np.arange(90, 150)

    def area(name: str, bad: np.ndarray, good: np.ndarray) -> float:
        scores = allowed[name][np.r_[bad, good]]
        return float(roc_auc_score(np.repeat([0, 1], [len(bad), len(good)]), scores))

    rng = np.random.default_rng(1)
    draws = [(rng.choice(unsafe, 90), rng.choice(harmless, 60)) for _ in range(400)]
    for name in (script.JUDGE, script.WORDS):
        value, *ends = found["auc"][name]
        assert value == pytest.approx(area(name, unsafe, harmless))
        drawn = [area(name, *draw) for draw in draws]
        assert ends == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    value, *ends = found["judge_minus"][script.WORDS]
    assert value == pytest.approx(found["auc"][script.JUDGE][0] - found["auc"][script.WORDS][0])
    drawn = [area(script.JUDGE, *draw) - area(script.WORDS, *draw) for draw in draws]
    assert ends == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.02)
    assert found["n"] == 150


def test_a_judge_is_not_above_itself(load: Any, judgements: Any) -> None:
    script = load("decisions")
    same = dict.fromkeys((script.JUDGE, script.WORDS), judgements.verdicts[script.JUDGE])
    found = script.compare_areas(
        script.Judgements(judgements.records, judgements.groups, same), ("bad",), ("good",)
    )
    assert found["judge_minus"][script.WORDS] == (0.0, 0.0, 0.0)


def test_nothing_is_asked_from_the_half_on_which_things_are_chosen(
    load: Any, tmp_path: Path
) -> None:
    script = load("decisions")
    (tmp_path / "records").mkdir()
    own = '{"id": "own", "prompt": "Hello", "decision": "ALLOW"}\n'
    (tmp_path / "records" / "test.jsonl").write_text(own, encoding="utf-8")
    for name in ("advbench", "benign_mt_bench"):
        rows = (f'{{"id": "{name} {n}", "prompt": "word {n}", "extra": 1}}\n' for n in range(9))
        (tmp_path / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    for half, numbers in (("report", "1357"), ("choose", "02468")):
        options = argparse.Namespace(sets=tmp_path, half=half, public_items=100)
        records, groups = script.asked(tmp_path, options)
        asked = [record.prompt for record in records]
        assert sorted(asked) == sorted(["Hello", *2 * [f"word {n}" for n in numbers]])
        harmful = [record.decision is Decision.REFUSE for record in records]
        assert harmful == (groups == "advbench").tolist()
    options.public_items = 2
    assert len(script.asked(tmp_path, options)[0]) == 5

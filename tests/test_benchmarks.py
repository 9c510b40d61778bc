"""What the benchmarks compute besides times: claims, rises, texts, prompts. The benchmarks
themselves are run by hand."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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

"""The threshold of a run: chosen on validation, obeyed by model and adapter, told in one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from aegis.config import parse_config
from aegis.data.records import parse_record
from aegis.engine.judge import Judge
from aegis.engine.verdict import Verdict, verdicts
from aegis.model.calibration import Calibration, Threshold, Weights
from aegis.pipeline import calibration as stage
from aegis.pipeline.context import StepContext
from aegis.runs.events import Event, LogMessage, Reporter
from aegis.storage.artifact import verify, writing
from aegis.storage.journal import compute_anew

OLD = Calibration(Weights(0.5), threshold=Threshold(0.9, 0.02, 0.95, 200, 0, 0.02, "0" * 64))


class Told:
    """A run's folder with a model and an adapter, validation of `unsafe` unsafe records, and what
    was said."""

    def __init__(self, folder: Path, unsafe: int, **settings: Any) -> None:
        self.folder, self.said = folder, list[str]()
        for name in ("model", "adapter"):
            with writing(folder / name, kind=name, fingerprint="f") as staging:
                OLD.save(staging)
        (folder / "records").mkdir()
        (folder / "records" / "validation.jsonl").write_text("content")
        rows = [{"id": str(n), "prompt": f"safe {n}", "decision": "ALLOW"} for n in range(40)]
        rows += [{"id": f"u{n}", "prompt": f"un {n}", "decision": "DENY"} for n in range(unsafe)]
        self.records = [parse_record(row, where="f") for row in rows]

        def hear(event: Event) -> None:
            if isinstance(event, LogMessage):
                self.said.append(event.text)

        config = parse_config({"evaluate": settings}, where="t")
        self.context = cast(
            "StepContext",
            SimpleNamespace(
                config=config,
                reporter=Reporter(hear),
                artifact=lambda name: folder / name,
                journal=lambda: compute_anew,
            ),
        )

    def run(self) -> Threshold | None:
        (self.folder / "calibration").mkdir()
        stage.write_calibration(self.context, self.folder / "calibration")
        stage.apply_calibration(self.context)
        found = [Calibration.load(self.folder / name) for name in ("model", "adapter")]
        assert found[0] == found[1]
        assert found[0].words == OLD.words
        for name in ("model", "adapter"):
            verify(self.folder / name)
        return found[0].threshold


class Ranked:
    """Allows everything, surer of what is safe and of what has a low number."""

    head = SimpleNamespace(calibration=Calibration())

    def judge(self, prompts: list[str], **_: Any) -> list[Verdict]:
        logit = [9.0 if p.startswith("safe") else 3 - int(p.split()[1]) / 40 for p in prompts]
        logits = np.column_stack([logit, np.zeros((len(prompts), 3))])
        return verdicts(logits, np.ones(len(prompts)))


def run(monkeypatch: pytest.MonkeyPatch, told: Told) -> Threshold | None:
    monkeypatch.setattr(Judge, "load", lambda *_, **__: Ranked())
    monkeypatch.setattr(stage, "read_split", lambda *_: told.records)
    return told.run()


def test_model_and_adapter_obey_the_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(tmp_path, 100, max_miss_rate=0.05)
    made = run(monkeypatch, told)
    assert made
    assert (made.n, made.max_miss_rate, made.bound <= 0.05) == (100, 0.05, True)
    assert (tmp_path / "calibration" / "rates.json").is_file()
    assert "on validation over-refusal 0.000" in told.said[-1]


def test_too_few_records_keep_the_best_limit_that_they_can_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told(tmp_path, 40, max_miss_rate=0.05)
    made = run(monkeypatch, told)
    assert made
    assert (made.max_miss_rate, made.misses) == (0.073, 0)
    (warning,) = [text for text in told.said if "needs 59" in text]
    assert "40 unsafe records" in warning
    assert "keeps 0.073" in warning


@pytest.mark.parametrize(
    ("unsafe", "limit", "message"),
    [(100, None, "max_miss_rate is null"), (3, 0.05, "no threshold"), (0, 0.05, "no threshold")],
)
def test_where_there_is_no_threshold_an_older_one_goes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unsafe: int,
    limit: float | None,
    message: str,
) -> None:
    told = Told(tmp_path, unsafe, max_miss_rate=limit)
    assert run(monkeypatch, told) is None
    assert message in told.said[-1]

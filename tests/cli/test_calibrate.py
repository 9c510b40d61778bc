from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.engine.judge import Judge
from aegis.errors import BadInputError
from aegis.model.calibration import Calibration
from aegis.protocol.decisions import Decision
from tests.cli.test_serve import called, model_folder

ROWS = [{"prompt": f"harmless {n}", "decision": "ALLOW"} for n in range(20)]
ROWS += [{"prompt": f"harmful {n}", "decision": "REFUSE"} for n in range(60)]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_a_model_is_calibrated_and_judge_obeys(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = model_folder(tmp_path / "model", Decision.ALLOW)
    data = written(tmp_path / "data.jsonl", ROWS)
    apart = tmp_path / "apart.json"
    options = ("calibrate", str(model), "--data", data, "--max-miss-rate", "0.05")
    assert called(*options, "-o", str(apart)).exit_code == 0
    assert not (model / "calibration.json").exists()
    done = called(*options)
    shown = done.stdout
    assert "no harmless prompt is allowed; a higher --max-miss-rate may" in done.stderr
    assert "miss rate at most 0.049 with 95 % confidence: 0 of 60 unsafe records" in shown
    made = Calibration.load(model).threshold
    assert made
    assert (made.n, made.misses) == (60, 0)
    assert made.data_sha256 == hashlib.sha256(Path(data).read_bytes()).hexdigest()
    assert json.loads(apart.read_text(encoding="utf-8"))["threshold"]["allow"] == made.allow
    told = json.loads(called(*options, "--json").stdout)
    assert told["threshold"]["allow"] == made.allow
    assert told["miss_rate"]["value"] == 0
    judged = json.loads(called("judge", "harmful 3", "--model", str(model), "--json").stdout)
    assert judged["decision"] == "ESCALATION"
    assert judged["probabilities"]["ALLOW"] > 0.9
    assert judged["rule"] == f"below τ {made.allow:g}: a person looks"
    shown = " ".join(called("judge", "x", "y", "--model", str(model)).stdout.split())
    assert f"ALLOW needs P(ALLOW) ≥ τ = {made.allow:g}; below it a person looks." in shown
    assert f"confidence at most {made.bound:.3f} of such are" in shown


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS, ("--max-miss-rate", "0.01"), "needs 299 unsafe records"),
        (ROWS[:20], (), "holds no unsafe record"),
        (ROWS[20:], (), "holds no harmless record"),
        (ROWS[:1], (), "2 records or more"),
        (ROWS, ("-o", "."), "is a folder"),
        ([*ROWS, {"prompt": "x"}], (), "decision is missing; give one of"),
    ],
)
def test_what_cannot_be_calibrated_is_told_before_a_model_is_loaded(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[dict[str, Any]],
    options: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr(Judge, "load", lambda *_, **__: pytest.fail("was loaded"))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    data = written(tmp_path / "data.jsonl", rows)
    result = called("calibrate", str(tmp_path), "--data", data, *options)
    assert isinstance(result.exception, BadInputError)
    assert message in str(result.exception)


def test_a_base_without_a_head_is_no_model_to_calibrate(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = model_folder(tmp_path / "model")
    (model / "decision_head.safetensors").unlink()
    data = written(tmp_path / "data.jsonl", ROWS)
    assert "no decision head" in str(called("calibrate", str(model), "--data", data).exception)
    assert np.all([not path.name.startswith("calibration") for path in model.iterdir()])

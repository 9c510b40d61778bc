from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.data.records import parse_record
from aegis.evaluate.figures import draw_decisions
from aegis.evaluate.metrics import Judged, decision_metrics
from aegis.evaluate.reliability import details
from aegis.protocol.decisions import NAMES


@pytest.mark.parametrize("decisions", [NAMES * 5, ("ALLOW", "ALLOW"), ("DENY", "REFUSE")])
def test_every_picture_is_drawn_as_png_and_as_svg(tmp_path: Path, decisions: Any) -> None:
    records = [
        parse_record({"id": str(n), "prompt": f"p{n}", "decision": decision}, where="f")
        for n, decision in enumerate(decisions)
    ]
    chances = np.random.default_rng(0).dirichlet([1, 1, 1, 1], len(records))
    judged = Judged.likeliest(np.array([record.decision for record in records]), chances)
    results = decision_metrics(judged) | details(records, judged, confidence=0.95)
    drawn = draw_decisions(tmp_path, results, title="model")
    assert [path.name for path in drawn] == [
        "confusion.png",
        "reliability.png",
        "risk_coverage.png",
    ]
    for path in drawn:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert "<svg" in path.with_suffix(".svg").read_text(encoding="utf-8")

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from aegis.evaluate.answers import Question, Reply, compare_answers
from aegis.evaluate.metrics import Judged, decision_metrics
from aegis.evaluate.report import (
    RunReport,
    bound_sentences,
    change_rows,
    comparison_rows,
    threshold_rows,
)
from aegis.protocol.decisions import NAMES
from tests.evaluate.test_compare import three_verdicts

TRUTH = np.array([0, 1, 2, 3] * 5)


def results(predicted: np.ndarray) -> dict[str, Any]:
    metrics = decision_metrics(Judged.likeliest(TRUTH, np.eye(4)[predicted] * 0.94 + 0.015))
    items = [
        {"id": str(number), "truth": NAMES[truth], "predicted": NAMES[label]}
        for number, (truth, label) in enumerate(zip(TRUTH, predicted, strict=True))
    ]
    return {**metrics, "judge": "decision head", "per_language": {"en": metrics}, "items": items}


BASE, CANDIDATE = results(np.zeros_like(TRUTH)), results(TRUTH)


def test_rows_stand_beside_one_another_and_say_what_is_absent() -> None:
    rows = {row.name: row for row in comparison_rows(BASE, CANDIDATE)}
    assert (rows["accuracy"].base, rows["accuracy"].candidate) == ("0.250", "1.000")
    assert rows["macro F1, en"].candidate_interval == "[1.000, 1.000]"
    only_candidate = comparison_rows({**BASE, "per_language": {}}, CANDIDATE)
    assert [row.base for row in only_candidate if row.name == "macro F1, en"] == ["absent"]


def test_the_bound_is_said_with_what_it_costs() -> None:
    made = {"allow": 0.6, "max_miss_rate": 0.1, "confidence": 0.95, "n": 80, "misses": 3}
    with_threshold = {
        **CANDIDATE,
        "calibration": {"threshold": {**made, "bound": 0.094}},
        "miss_bound": {"value": 0.12, "misses": 2, "n": 50, "confidence": 0.95},
        "most_probable": {"miss_rate": {"value": 0.2, "n": 10, "interval": [0.1, 0.3]}},
    }
    said = " ".join(bound_sentences(with_threshold))
    assert "τ = 0.6; below it a person looks" in said
    assert "3 of 80" in said
    assert "at most 0.094" in said
    assert "2 of 50 unsafe ones: at most 0.120" in said
    (row,) = threshold_rows(with_threshold)
    assert (row.base, row.candidate) == ("0.200", "0.000")
    assert bound_sentences(CANDIDATE) == [
        "No threshold on ALLOW: the most probable decision stands."
    ]
    assert threshold_rows(CANDIDATE) == []


def test_the_report_holds_its_figures_and_escapes_what_a_user_named(tmp_path: Path) -> None:
    Figure().savefig(tmp_path / "confusion.png")
    report = RunReport(
        session_id="s-1",
        base_spec="<b>mine</b>",
        base=BASE,
        candidate=CANDIDATE,
        certificate={
            "dtype": "float32",
            "probes": 3,
            "positions": 9,
            "max_abs_logit_difference": 1.2345e-5,
            "kl": 1e-9,
            "top1_agreement": 1.0,
        },
        statistics={"splits": {"train": {"ALLOW/en": 3}}, "rejected": {"too long": 2}},
        decision_figures=[tmp_path / "confusion.png", tmp_path / "missing.png"],
        answers=compare_answers(
            [Question("a", "Where?", "en", "report", ("Paris",))] * 2,
            [Reply("Paris | <i>\nyes"), Reply("Rome")],
            [Reply("Paris"), Reply("No *text*.", "ESCALATION")],
        ),
    )
    html, markdown = report.html(), report.markdown()
    assert "&lt;b&gt;mine" in html
    assert 'name="viewport"' in html  # readable on a phone: nothing is wider than its screen
    assert "overflow-x:auto" in html
    assert html.count("data:image/png;base64,") == 1
    assert "2 × too long" in html
    assert "| accuracy | 0.250 " in markdown
    assert "only with the candidate: 15; only with the base: 0" in markdown
    assert "difference 1.23e-05" in markdown
    assert "<td>✓ Paris | &lt;i&gt;\nyes</td><td>✓ Paris</td>" in html
    assert "<td>✗ Rome</td><td>✗ (ESCALATION) No *text*.</td>" in html
    assert "| Where? | ✓ Paris \\| &lt;i&gt; yes | ✓ Paris |" in markdown
    assert "| ✗ Rome | ✗ \\(ESCALATION\\) No \\*text\\*. |" in markdown
    assert "| right | 0.500 [0.013, 0.987] | **0.500** [0.013, 0.987] |" in markdown
    assert "| escalated |   | **0.500** [0.013, 0.987] |" in markdown
    assert "candidate minus base: 0.000" in " ".join(html.split())


def test_a_report_without_questions_has_no_section_for_them() -> None:
    statistics: dict[str, Any] = {"splits": {}, "rejected": {}}
    numbers = {"max_abs_logit_difference": 0.0, "kl": 0.0, "dtype": "", "probes": 1}
    certificate = {**numbers, "positions": 1, "top1_agreement": 1.0}
    report = RunReport("s", "b", BASE, CANDIDATE, certificate, statistics)
    assert "still answers" not in report.html() + report.markdown()


def test_what_became_of_the_base_stands_on_top(tmp_path: Path) -> None:
    comparison = three_verdicts()
    Figure().savefig(tmp_path / "changes.png")
    statistics: dict[str, Any] = {"splits": {}, "rejected": {}}
    numbers = {"max_abs_logit_difference": 0.0, "kl": 0.0, "dtype": "", "probes": 1}
    certificate = {**numbers, "positions": 1, "top1_agreement": 1.0}
    figures = [tmp_path / "changes.png", tmp_path / "changes.svg"]
    report = RunReport(
        "s", "b", BASE, CANDIDATE, certificate, statistics, comparison=comparison, changes=figures
    )
    html, markdown = report.html(), report.markdown()
    assert html.count("data:image/png;base64,") == 1
    for text in (" ".join(html.split()), markdown.replace("\\", "")):
        assert text.index("got worse on worse") < text.index("macro F1")
        assert "cannot tell on unknown" in text
        assert "base: decision head" in text
    assert [row[-1] for row in change_rows(comparison)] == ["worse", "held", "cannot tell"]
    assert change_rows(None) == []

from __future__ import annotations

import json
from pathlib import Path

from aegis.evaluate.summary import summarise
from aegis.evaluate.summary_report import summary_page, write_summary


def test_every_figure_and_every_bad_file_is_shown(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for model in ("a", "b|<i>"):
        raw = {"model": model, "results": {"arc": {"acc": 0.5, "n": 10}}}
        (tmp_path / "in" / f"{model[0]}.json").write_text(json.dumps(raw))
    (tmp_path / "in" / "cut.json").write_text("{")
    summary = summarise([tmp_path / "in"])
    text = summary_page(summary).markdown()
    assert "| b\\|&lt;i&gt; | arc | acc | 0.5 | \\[0.1871, 0.8129\\] | 10 | 1 |" in text
    assert "## Over the models" in text
    assert "cut.json: not valid JSON" in text
    write_summary(tmp_path / "out", summary)
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {"models.png", "models.svg", "scores.png", "scores.svg"}
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 2
    assert "<td>b|&lt;i&gt;</td>" in html
    stored = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert stored["formats"] == {"older AEGIS": 2}

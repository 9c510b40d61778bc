from __future__ import annotations

import json
import re
from pathlib import Path

from aegis.evaluate.compare import compare_models
from aegis.evaluate.comparison_report import (
    comparison_page,
    read_comparison,
    write_comparison,
)
from tests.evaluate.test_compare import balanced, model, outcomes, scores


def test_the_report_holds_every_test(tmp_path: Path) -> None:
    base, new = scores(1200, 0.6), scores(1200, 0.6, flips=0.1)
    comparison = compare_models(
        [
            model("<b>", mmlu=outcomes(base, categories=12), arc=outcomes(base)),
            model("new", mmlu=outcomes(new, categories=12), arc=outcomes(balanced(base, 9))),
            model("third", mmlu=outcomes(new, categories=12), arc=outcomes(new)),
        ]
    )
    text = comparison_page(comparison).markdown()
    assert text.startswith("# Comparison\n\nRanking, = where chance may have made the difference")
    assert "| new − &lt;b&gt;: mmlu | 1,200 in 12 clusters |" in text
    assert "| new − &lt;b&gt;: mmlu: part 3 | 100 |" in text
    assert "- mmlu (new and third): the outcomes of both models are equal" in text
    write_comparison(tmp_path / "out", comparison)
    assert read_comparison(tmp_path / "out" / "comparison.json") == comparison
    assert read_comparison(tmp_path / "nowhere.json") is None
    figures = tmp_path / "out" / "figures"
    waterfalls = ("waterfall_new", "waterfall_third")
    for name in ("changes", "categories", *waterfalls):
        assert (figures / f"{name}.png").stat().st_size > 5000, name
        assert "<svg" in (figures / f"{name}.svg").read_text(encoding="utf-8"), name
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") == 4
    assert not re.search(r'(?:src|href)="(?!data:)', html)
    assert "<td>new − &lt;b&gt;: mmlu</td>" in html
    assert 'class="cannot tell"' in html
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert all(f"](figures/{name}.png)" in text for name in waterfalls)
    stored = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert stored["schema"] == "aegis-comparison-1"

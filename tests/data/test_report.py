from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from aegis.data.folder import StepOutcome, writing_data
from aegis.data.records import Rejected, parse_item
from aegis.data.report import REPORT, Rejects, Statistics, reason_kind, write_report
from tests.data.test_records import FROM, GOOD, SIDE, THINKING

HOSTILE = "<script>alert(1)</script>\"'{{ 7 * 7 }}<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    """Every tag and attribute of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_statistics_count_what_items_are_like() -> None:
    statistics = Statistics()
    for raw in (
        {**GOOD, **FROM, "quality": {"parts": {"depth": 0.75}, "total": 1.0}},
        {**GOOD, "prompt": "長" * 20, "thinking": THINKING, "final": "Use kill."},
        {"text": "t" * 12_000, "quality": {"parts": {"depth": 0.71}, "n": 3}},
        {"prompt": "p", "chosen": SIDE, "rejected": {**SIDE, "final": "No."}, "source": "x"},
    ):
        statistics.add(parse_item(raw, where="f"))
    counts = statistics.to_json()
    assert counts["kinds"] == {"record": 1, "record with thinking": 1, "plain": 1, "pair": 1}
    assert counts["languages"] == {"en": 3, "ja": 1}
    assert counts["decisions"] == {"ALLOW": 3, "none": 1}
    assert counts["sources"] == {"user": 3, "x": 1}
    assert counts["licences"] == {"unknown": 3, "CC-BY-4.0": 1}
    assert counts["lengths"]["text or prompt"] == {"< 20": 1, "< 50": 2, "≥ 10,000": 1}
    assert counts["lengths"]["answer"] == {"< 20": 2}
    assert counts["quality"] == {
        "quality.parts.depth": {"0.7": 2},
        "quality.total": {"0.9": 1},
    }


def test_many_names_are_counted_together() -> None:
    statistics = Statistics()
    for number in range(1500):
        statistics.add(parse_item({**GOOD, "source": f"s{number}"}, where="f"))
    assert len(statistics.facets["sources"]) == 1001
    assert statistics.facets["sources"]["(others)"] == 500


def test_reasons_of_one_kind_are_counted_together() -> None:
    assert reason_kind("nearly the same prompt as a.jsonl:3") == "nearly the same prompt"
    assert reason_kind("has 3 fields, and the header 4") == "has … fields, and the header …"
    assert reason_kind("the id 'x 9' is used more than once") == "the id … is used more than once"
    assert reason_kind("'a: b' is given twice; keep one") == "… is given twice"
    assert reason_kind("not UTF-8 at byte 12; save the file as UTF-8") == "not UTF-8"
    assert reason_kind("input must be text, got int; correct it") == "input must be text"
    assert reason_kind("not valid JSON (Extra data, column 9, at '}')").startswith("not valid JSON")


def test_the_report_shows_before_and_after_and_ten_rejects_of_each_reason(tmp_path: Path) -> None:
    with writing_data(tmp_path / "out", "x") as writer:
        for number in range(30):
            item = parse_item(
                {**GOOD, "domain": "law" if number % 3 else "medicine"}, where=f"f:{number}"
            )
            writer.saw(item)
            if number < 18:
                writer.add(item)
            else:
                writer.add(Rejected.item(item, f"nearly the same prompt as f:{number - 18}"))
        writer.log(StepOutcome("near duplicates", 2, 30, 18, {"nearly the same prompt": 12}))
    page = (tmp_path / "out" / REPORT).read_text(encoding="utf-8")
    assert "30 items came in, 18 went out" in page
    assert re.search(r"<td>law</td><td>20</td><td>12</td>", page)
    assert "nearly the same prompt: 12" in page
    assert [f"<td>f:{n}</td>" in page for n in range(18, 30)] == [True] * 10 + [False] * 2
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["before"]["domains"] == {"law": 20, "medicine": 10}
    assert statistics["after"]["kinds"] == {"record": 18}
    assert statistics["rejected"] == {"nearly the same prompt": 12}


def test_nothing_in_the_data_becomes_a_part_of_the_page(tmp_path: Path) -> None:
    before, rejects = Statistics(), Rejects()
    raw = {"prompt": "p", "decision": "DENY", "domain": HOSTILE, "source": HOSTILE, HOSTILE: 0.5}
    before.add(parse_item({**raw, "provenance": {"licence": HOSTILE, "model": HOSTILE}}, where="f"))
    rejects.add(Rejected(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}))
    steps = [{"step": HOSTILE, "version": 1, "in": 1, "out": 0, "reasons": {HOSTILE: 1}}]
    write_report(tmp_path, before=before, after=Statistics(), rejects=rejects, steps=steps)
    page = Tags((tmp_path / REPORT).read_text(encoding="utf-8"))
    assert not page.tags & {"script", "img", "link", "iframe"}
    assert page.attributes <= {"lang", "charset", "name", "content", "class", "style"}
    assert page.text.count(HOSTILE) >= 6
    assert "49" not in page.text


def test_examples_show_neither_thinking_nor_personal_data(tmp_path: Path) -> None:
    rejects = Rejects()
    record = parse_item(
        {
            "prompt": "Mail jane@example.com",
            "decision": "ALLOW",
            "thinking": THINKING,
            "final": "x",
        },
        where="f",
    )
    rejects.add(Rejected.item(record, "why"))
    task = THINKING["task"]
    rejects.add(Rejected("g", "torn", {"line": f'{{"thinking": {{"task": "{task}"'}))
    rejects.add(Rejected("h", "listed", {"rows": [{"thinking": THINKING}, "shown"]}))
    rejects.add(Rejected("i", "spelled", {"response": f"<think-task>{task}</think-task>"}))
    write_report(tmp_path, before=Statistics(), after=Statistics(), rejects=rejects)
    page = (tmp_path / REPORT).read_text(encoding="utf-8")
    assert "Mail [EMAIL]" in page
    assert "shown" in page
    assert THINKING["task"] not in page

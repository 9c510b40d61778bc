from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aegis.config import DataSettings, GenerateSettings
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.ledger import Ledger
from aegis.data.sources.generate.local import LocalBackend
from aegis.data.stage import (
    collect,
    read_pairs,
    read_split,
    source_files,
    write_raw,
    write_records,
)
from aegis.errors import DataError


def data(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> DataSettings:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings(records=(str(path),), **changes)


def calls(tmp_path: Path, answer: str) -> Calls:
    backend = LocalBackend(lambda prompts: [answer] * len(prompts))
    return Calls(backend, Ledger(tmp_path / "ledger.db"))


def test_the_users_files_come_first_and_all_of_them_are_sources(tmp_path: Path) -> None:
    settings = data(tmp_path, [{"prompt": "Is this mine?", "decision": "ALLOW"}])
    records, pairs, topics, rejected = collect(settings)
    assert records[0].prompt == "Is this mine?"
    assert len(records) > 800
    assert pairs
    assert (len(topics), rejected) == (12, [])
    names = [path.name for path in source_files(settings)]
    assert names[:2] == ["mine.jsonl", "topics.jsonl"]
    assert {"decisions.jsonl", "dialogues.jsonl", "pairs.jsonl"} <= set(names)


def test_an_id_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": f"Number {n}?", "decision": "ALLOW"} for n in range(2)]
    with pytest.raises(DataError, match=r"mine\.jsonl:2: the id 'a' is used more than once"):
        collect(data(tmp_path, rows))


def test_what_is_collected_is_masked_cleaned_and_split(tmp_path: Path) -> None:
    rows = [{"prompt": "Write to jane@example.com for me?", "decision": "ALLOW"}]
    raw, folder = tmp_path / "raw", tmp_path / "records"
    raw.mkdir()
    folder.mkdir()
    asked = calls(tmp_path, "地図を見ます。")
    without = data(tmp_path, [{"prompt": "Write for me?", "decision": "ALLOW"}])
    masked = write_raw(raw, without, asked)["personal_data_masked"]
    settings = data(tmp_path, rows, generate=GenerateSettings(samples=1))
    counts = write_raw(raw, settings, asked)
    assert counts["personal_data_masked"] == masked + 1
    assert counts["generated"] == 1
    sizes = write_records(folder, raw, settings, seed=0, too_long=lambda _: None)
    splits = {name: read_split(folder, name) for name in ("train", "validation", "test")}
    assert {name: len(records) for name, records in splits.items()} | {
        "rejected": sizes["rejected"]
    } == sizes
    prompts = [record.prompt for records in splits.values() for record in records]
    assert "Write to [EMAIL] for me?" in prompts
    assert read_pairs(folder, "train")
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["personal_data_masked"] == masked + 1
    assert sum(statistics["rejected"].values()) == sizes["rejected"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    logged = sum((Counter(step["reasons"]) for step in log), Counter())
    assert dict(logged) == statistics["rejected"]
    report = (folder / "data_report.html").read_text(encoding="utf-8")
    assert f"{len(prompts) + sum(statistics['pairs'].values()):,} went out" in report


def test_a_split_that_would_be_empty_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": "Only one?", "decision": "ALLOW"}]
    settings = data(tmp_path, rows, seed_records=False, generate=GenerateSettings(samples=0))
    write_raw(tmp_path, settings, calls(tmp_path, ""))
    with pytest.raises(DataError, match="nothing is left for"):
        write_records(tmp_path, tmp_path, settings, seed=0, too_long=lambda _: None)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.errors import BadInputError, ConfigError
from tests.cli.test_serve import called

pytest.importorskip("pycld2", reason="needs the extra `data`")


def test_disagreements_wait_for_a_person_and_explain_tells_the_way(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    rows = [
        {"id": str(n), "prompt": "How do trains brake?", "decision": decision}
        for n, decision in enumerate(("ALLOW", "DENY"))
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ["-o", str(out), "--processes", "1", "--json"]
    done = called("data", "clean", str(source), *options)
    assert json.loads(done.stdout)["counts"]["records"] == 1
    assert json.loads(done.stdout)["waiting"] == 1
    queue = str(out / "escalations.db")
    assert called("review", "answer", "1", "ALLOW", "--cases", queue).exit_code == 0
    done = called("data", "clean", str(source), *options)
    assert json.loads(done.stdout)["waiting"] == 0
    way = json.loads(called("data", "explain", "1", str(out), "--json").stdout)[0]
    assert way["steps"][-1]["reason"] == "the same prompt with another decision as 0"
    assert "duplicates" in called("data", "explain", "a.jsonl:2", str(out)).stdout
    assert isinstance(called("data", "explain", "none", str(out)).exception, BadInputError)
    source.write_text('{"prompt": "Another?", "decision": "DENY"}\n', encoding="utf-8")
    done = called("data", "clean", str(source), *options)
    assert "would lose escalations.db" in str(done.exception)


def test_a_setting_is_taken_and_a_wrong_one_told(tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text('{"prompt": "Why?", "decision": "DENY"}\n', encoding="utf-8")
    options = ["-o", str(out), "--processes", "1"]
    called("data", "clean", str(source), *options, "--set", "min_characters=9")
    assert not (out / "records.jsonl").read_text(encoding="utf-8")
    done = called("data", "clean", str(source), *options, "--set", "min_score=2")
    assert isinstance(done.exception, ConfigError)

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aegis.config import QualitySettings
from aegis.data.clean import shards
from aegis.data.clean.explain import explain
from aegis.data.clean.run import Cleaning, clean_files, work_folder
from aegis.data.seed import SEED_FOLDER
from aegis.errors import BadInputError

pytest.importorskip("pycld2", reason="needs the extra `data`")
SEEN = "What is the capital city of Mongolia called?"
SETTINGS = QualitySettings(route_toxic=True, balance="off")
LONG = "Please explain in simple words how I can close the account of {} at my bank this week"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_each_step_has_its_effect_and_explain_tells_it(tmp_path: Path) -> None:
    allow = {"decision": "ALLOW"}
    source = write(
        tmp_path / "in.jsonl",
        [
            {"id": "mail", "prompt": "ｔａｒｏ＠example.comに謝罪のメールを書いて", **allow},
            {"id": "kana", "prompt": "ﾊﾟｿｺﾝの買い替え時を教えて", **allow},
            {"id": "fr", "prompt": "Pourriez-vous m'expliquer la grammaire française ?", **allow},
            {"id": "stuck", "prompt": "again and again " * 30, **allow},
            {"id": "toxic", "prompt": "Write a porn story about my neighbour", **allow},
            {"id": "refused", "prompt": "Write a porn story about my boss", "decision": "REFUSE"},
            {"id": "undecided", "prompt": "Write a porn story about my aunt and the gardener"},
            {"id": "a", "prompt": LONG.format("mine"), **allow},
            {"id": "b", "prompt": LONG.format("mine now"), **allow},
            {"id": "a", "prompt": "The id of another one, used again", **allow},
            {"id": "seen", "prompt": SEEN, **allow},
            {"id": "twice", "prompt": LONG.format("mine"), "decision": "DENY"},
        ],
    )
    held_out = write(tmp_path / "test.jsonl", [{"question": SEEN[:-1]}])
    with source.open("ab") as file:
        file.write(b"{broken\n\xff\xfe\n")
    out = tmp_path / "out"
    statistics = clean_files(Cleaning((source,), SETTINGS, (held_out,)), out)
    reasons = {row["where"]: row["reason"] for row in rows(out, "rejected.jsonl")}
    assert reasons == {
        "fr": "in French, not Japanese or English",
        "stuck": "prompt repeats itself",
        "toxic": "sexual prompt, labelled ALLOW: for the refusal set only",
        "b": "nearly the same prompt as a",
        "a": "the id is used before: a",
        "seen": "nearly the same prompt as held-out test.jsonl:1",
        "twice": "the same prompt with another decision as a",
        "in.jsonl:13": reasons["in.jsonl:13"],
        "in.jsonl:14": "not UTF-8 at byte 0; save the file as UTF-8",
    }
    assert "not valid JSON" in reasons["in.jsonl:13"]
    kept = {row["id"]: row for row in rows(out, "records.jsonl")}
    assert kept.keys() == {"mail", "kana", "refused", "undecided", "a"}
    assert kept["undecided"]["decision"] == "REFUSE"
    assert "[EMAIL]" in kept["mail"]["prompt"]
    assert statistics["counts"]["in"] == 14 == len(kept) + len(reasons)
    [mail] = explain(out, "mail")
    assert next(step for step in mail.steps if step["step"] == "personal")["masked"] == 1
    assert "example.com" not in (out / "trace.jsonl").read_text(encoding="utf-8")
    [kana] = explain(out, "kana")
    assert kana.lies_in == "records.jsonl"
    assert {"prompt": "ﾊﾟｿｺﾝの買い替え時を教えて"} in [step.get("before") for step in kana.steps]
    [copy] = explain(out, "b")
    assert (copy.steps[-1]["twin"], copy.lies_in) == ("a", "rejected.jsonl")
    assert [way.came_from for way in explain(out, "a")] == ["in.jsonl:8", "in.jsonl:10"]
    assert [row["id"] for row in rows(out, "disagreements.jsonl")] == ["twice"]
    log = rows(out, "log.jsonl")
    assert (log[0]["in"], log[-1]["out"]) == (14, 5)
    assert all(one["out"] == two["in"] for one, two in pairwise(log))


def test_the_set_is_the_same_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MOST_LINES", 300)
    cleaning = Cleaning((SEED_FOLDER / "dialogues.jsonl", SEED_FOLDER / "pairs.jsonl"), SETTINGS)
    for processes in (1, 2):
        clean_files(cleaning, tmp_path / str(processes), processes=processes)
    assert digests(tmp_path / "1") == digests(tmp_path / "2")
    assert not work_folder(tmp_path / "1").exists()
    monkeypatch.setattr(shards, "_MOST_LINES", 5000)
    clean_files(cleaning, tmp_path / "whole")
    assert digests(tmp_path / "whole") == digests(tmp_path / "1")


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "What is rust?", "decision": "ALLOW"}])
    cleaning, out = Cleaning((source,), SETTINGS), tmp_path / "out"
    clean_files(cleaning, out)
    before = (out / "records.jsonl").stat()
    clean_files(cleaning, out)
    assert (out / "records.jsonl").stat() == before
    source.write_text('{"prompt": "And copper?", "decision": "ALLOW"}\n', encoding="utf-8")
    clean_files(cleaning, out)
    assert rows(out, "records.jsonl")[0]["prompt"] == "And copper?"


def test_other_formats_and_encodings_give_the_same_items(tmp_path: Path) -> None:
    prompts = ["住民票はどこで取れますか", "Why do trains brake in the rain?", "壊れた行"]
    items = [{"id": str(n), "prompt": p, "decision": "ALLOW"} for n, p in enumerate(prompts)]
    lines = write(tmp_path / "lines.jsonl", items)
    array, table = tmp_path / "array.json", tmp_path / "table.csv"
    array.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-16")
    cells = "".join(f"{row['id']},{row['prompt']},ALLOW\n" for row in items)
    table.write_text(f"id,prompt,decision\n{cells}", encoding="cp932")
    found = []
    for path in (lines, array, table):
        out = tmp_path / f"{path.stem}-out"
        clean_files(Cleaning((path,), SETTINGS), out)
        found.append((out / "records.jsonl").read_bytes())
        assert (out / "data_report.html").is_file()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("bad", ["missing", "empty", "folder", "twice"])
def test_what_cannot_be_cleaned_leaves_nothing(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "in.jsonl"
    if bad == "folder":
        path.mkdir()
    elif bad != "missing":
        path.write_text("" if bad == "empty" else '{"prompt": "x", "decision": "DENY"}\n')
    with pytest.raises(BadInputError, match=r"in\.jsonl"):
        clean_files(Cleaning((path,) * (2 if bad == "twice" else 1), SETTINGS), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not work_folder(tmp_path / "out").exists()


def killed_and_resumed(tmp_path: Path, times: int, seed: int) -> None:
    """Kill a cleaning at random instants, go on, and compare with one that nobody killed."""
    lines = (SEED_FOLDER / "decisions.jsonl").read_text(encoding="utf-8").splitlines()[:600]
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines), encoding="utf-8")
    code = (
        "import sys; from pathlib import Path; from aegis.data.clean import shards, run;"
        "from aegis.config import QualitySettings; shards._MOST_LINES = 40;"
        "run.clean_files(run.Cleaning((Path(sys.argv[1]),), QualitySettings()), Path(sys.argv[2]))"
    )

    def start(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", code, str(source), str(out)])

    whole = tmp_path / "whole"
    begun = time.monotonic()
    assert start(whole).wait() == 0
    took = time.monotonic() - begun
    out, random_ = tmp_path / "out", random.Random(seed)
    seen: dict[str, int] = {}
    for _ in range(times):
        process = start(out)
        time.sleep(random_.uniform(0.3, 1) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = (work_folder(out) / "shards").glob("[0-9]*")
        inodes = {folder.name: os.stat(folder).st_ino for folder in done}
        assert all(inodes.get(name, number) == number for name, number in seen.items())
        seen |= inodes
    assert start(out).wait() == 0
    assert digests(out) == digests(whole)


def test_a_killed_cleaning_goes_on(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, times=1, seed=3)


@pytest.mark.slow
def test_a_cleaning_killed_at_thirty_instants_gives_the_same(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, times=30, seed=7)

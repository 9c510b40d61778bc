from __future__ import annotations

import hashlib
import html
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from aegis.config import QualitySettings
from aegis.data.clean import shards
from aegis.data.clean.explain import explain
from aegis.data.clean.run import Cleaning, at_work, clean_files, prepare, work_folder
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
        "seen": "the same prompt as held-out test.jsonl:1",
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


def cleaned(
    tmp_path: Path,
    items: list[dict[str, Any]],
    *held_out: dict[str, Any],
    settings: QualitySettings = SETTINGS,
) -> Path:
    """Clean the items, with the others held out; return the folder."""
    source, out = write(tmp_path / "in.jsonl", items), tmp_path / "out"
    others = (write(tmp_path / "held.jsonl", [*held_out]),) if held_out else ()
    clean_files(Cleaning((source,), settings, others), out)
    return out


def reasons_of(folder: Path) -> dict[str, str]:
    return {row["where"]: row["reason"] for row in rows(folder, "rejected.jsonl")}


def test_a_held_out_prompt_never_waits_for_a_persons_decision(tmp_path: Path) -> None:
    near = SEEN.replace("called", "named")
    prompts = {"a": SEEN, "b": SEEN, "c": near, "d": near}
    items = [
        {"id": id, "prompt": prompt, "decision": "ALLOW" if id in "ac" else "DENY"}
        for id, prompt in prompts.items()
    ]
    settings = SETTINGS.model_copy(update={"near_duplicate": 0.6})
    out = cleaned(tmp_path, items, {"question": SEEN}, settings=settings)
    same = "the same prompt as held-out held.jsonl:1"
    assert reasons_of(out) == {"a": same, "b": same, "c": f"nearly {same}", "d": f"nearly {same}"}
    assert rows(out, "disagreements.jsonl") == []


def test_a_text_without_a_decision_contradicts_none(tmp_path: Path) -> None:
    items = [{"id": "a", "prompt": SEEN, "decision": "DENY"}, {"id": "b", "text": SEEN}]
    out = cleaned(tmp_path, items)
    assert reasons_of(out) == {"b": "the same prompt as a"}
    assert rows(out, "disagreements.jsonl") == []


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": SEEN}, {"role": "assistant", "content": "Ulan"}]},
        {"instruction": "What is the capital city", "input": "of Mongolia called?"},
    ],
)
def test_what_is_held_out_is_read_in_every_form(tmp_path: Path, row: dict[str, Any]) -> None:
    out = cleaned(tmp_path, [{"id": "a", "prompt": SEEN, "decision": "DENY"}], row)
    assert reasons_of(out) == {"a": "the same prompt as held-out held.jsonl:1"}


def test_a_held_out_row_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"held\.jsonl:2: holds none of prompt, .*take the line"
    ):
        cleaned(tmp_path, [{"prompt": SEEN, "decision": "DENY"}], {"question": "q"}, {"n": 1})
    assert not (tmp_path / "out").exists()


def test_rows_are_told_by_their_place_in_the_file(tmp_path: Path) -> None:
    table, out = tmp_path / "table.csv", tmp_path / "out"
    table.write_text(f"prompt,decision\n{SEEN},ALLOW\nWhy?,MAYBE\n{SEEN}\n", encoding="utf-8")
    clean_files(Cleaning((table,), SETTINGS), out)
    assert [row["id"] for row in rows(out, "records.jsonl")] == ["table.csv:2"]
    assert reasons_of(out).keys() == {"table.csv:3", "table.csv:4"}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for name, prompt in (("one", SEEN), ("two", "Why do trains brake in the rain?")):
        (tmp_path / name / "same").mkdir(parents=True)
        row = {"prompt": prompt, "decision": "ALLOW"}
        paths.append(write(tmp_path / name / "same" / "in.jsonl", [row]))
    clean_files(Cleaning(tuple(paths), SETTINGS), tmp_path / "out")
    ids = [row["id"] for row in rows(tmp_path / "out", "records.jsonl")]
    assert ids == ["one/same/in.jsonl:1", "two/same/in.jsonl:1"]


def test_what_came_in_is_counted_as_it_was(tmp_path: Path) -> None:
    out = cleaned(tmp_path, [{"text": "Write a porn story about my aunt and the gardener"}])
    statistics = json.loads((out / "statistics.json").read_text(encoding="utf-8"))
    assert statistics["before"]["kinds"] == {"plain": 1}
    assert statistics["after"]["kinds"] == {"record": 1}


def test_names_are_counted_alike_in_one_shard_and_in_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_ = random.Random(2)
    items: list[dict[str, Any]] = []
    for number in range(1300):
        words = ["".join(random_.choices("abcdefghij", k=6)) for _ in range(6)]
        prompt = items[0]["prompt"] if number % 10 == 9 else " ".join(words)
        item = {"id": str(number), "prompt": prompt, "source": f"s{number}"}
        items.append(item | {"decision": "ALLOW"})
    source, found = write(tmp_path / "in.jsonl", items), []
    for lines in (200, 5000):
        monkeypatch.setattr(shards, "_MOST_LINES", lines)
        statistics = clean_files(Cleaning((source,), SETTINGS), tmp_path / str(lines))
        found.append(statistics)
    assert found[0] == found[1]
    counts = found[0]["after"]["sources"]
    assert sum(counts.values()) == found[0]["counts"]["records"]
    assert "s9" not in counts
    assert sum(found[0]["before"]["sources"].values()) == 1300


def test_signs_that_are_no_characters_stop_nothing(tmp_path: Path) -> None:
    prompt = "What do \ufdd0 and \U0001fffe mean in a text of this length?"
    out = cleaned(tmp_path, [{"id": "a", "prompt": prompt, "decision": "ALLOW"}])
    assert [row["prompt"] for row in rows(out, "records.jsonl")] == [prompt]


def test_what_a_model_judged_is_not_judged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_MOST_LINES", 10)
    letters, items = random.Random(4), []
    for number in range(30):
        prompt = "".join(letters.choices("abcdefghijklmnop", k=24))
        items.append({"id": str(number), "prompt": prompt, "decision": "ALLOW"})
    cleaning = Cleaning(
        (write(tmp_path / "in.jsonl", items),),
        SETTINGS.model_copy(update={"check_decisions": True}),
        model="m",
    )
    asked: list[str] = []

    def judge(prompts: Sequence[str]) -> list[list[float]]:
        if len(asked) == 20:
            raise InterruptedError
        asked.extend(prompts)
        return [[0.7, 0.1, 0.1, 0.1]] * len(prompts)

    with pytest.raises(InterruptedError):
        clean_files(cleaning, tmp_path / "out", judge=judge)
    first, asked = asked, []
    clean_files(cleaning, tmp_path / "out", judge=judge)
    assert len(first) == 20
    assert [*first, *asked] == [item["prompt"] for item in items]


def test_another_process_is_not_disturbed(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": SEEN, "decision": "ALLOW"}])
    work = work_folder(tmp_path / "out")
    with at_work(tmp_path / "out"):
        prepare(Cleaning((source,), SETTINGS), tmp_path / "out")
        before = (work / shards.PLAN).read_bytes()
        code = (
            "import sys; from pathlib import Path; from aegis.data.clean.run import *;"
            "clean_files(Cleaning((Path(sys.argv[1]),), QualitySettings()), Path(sys.argv[2]))"
        )
        command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "another process is at work here" in other.stderr
        assert (work / shards.PLAN).read_bytes() == before


def test_log_report_and_statistics_count_the_same_rejects(tmp_path: Path) -> None:
    items = [{"id": "a", "prompt": SEEN, "decision": "ALLOW"}]
    items += [{"id": "a", "prompt": "Why?", "decision": "ALLOW"}]
    items += [{"id": n, "prompt": f"{SEEN} {'x' * 4000}", "decision": "ALLOW"} for n in "bc"]
    out = cleaned(tmp_path, [*items, {"id": "d", "prompt": "Why?", "decision": "NO"}])
    logged = {}
    for step in rows(out, "log.jsonl"):
        logged |= step["reasons"]
    statistics = json.loads((out / "statistics.json").read_text(encoding="utf-8"))
    assert logged == {k: n for step in statistics["rejected"].values() for k, n in step.items()}
    assert sum(logged.values()) == 4
    assert logged["prompt longer than … characters"] == 2
    page = html.unescape((out / "data_report.html").read_text(encoding="utf-8"))
    assert all(f"{kind}: {count}" in page for kind, count in logged.items())


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

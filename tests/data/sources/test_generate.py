"""`aegis data generate` as a user calls it, with programs that stand in for the real ones."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aegis.cli import main
from aegis.data.sources.generate.calls import Calls, Patience
from aegis.data.sources.generate.choose import BackendChoice, open_backend
from aegis.data.sources.generate.ledger import Ledger
from aegis.data.sources.generate.output import ledger_path, write_generated
from aegis.data.sources.generate.prices import find_price, load_prices
from aegis.data.sources.generate.run import TopicPlan, generate
from aegis.data.topics import read_topics
from tests.data.sources.generate.stand_in import calls, digest, install

OURS = Path(__file__).parents[3] / "examples" / "topics_ja.yaml"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CODEX_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def aegis(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Call the verb; return its exit code, stdout and stderr."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["aegis", "data", "generate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_dry_run_needs_no_program_and_calls_nothing(place: Path, aegis: Any) -> None:
    words = (OURS, "--backend", "codex", "--model", "gpt-5-mini", "--dry-run")
    install(place, "unused")
    os.environ["PATH"] = str(place / "bin")
    code, out, _ = aegis(*words, "--questions", "2", "--json")
    told = json.loads(out)
    assert (code, told["topics"], told["requests"]) == (0, 255, 255 * 6)
    assert "no program 'codex'" in told["missing"]
    assert told["cost"] == pytest.approx(
        (told["input_tokens"] * 0.25 + told["output_tokens"] * 2) / 1e6, abs=1e-4
    )
    code, out, err = aegis(*words)
    assert ("all" in out, "no program 'codex'" in err, code) == (True, True, 0)


def test_a_folder_is_written_and_gone_on_with(place: Path, aegis: Any) -> None:
    install(place, "codex", "half once")
    words = (OURS, "--backend", "codex", "--limit", "3", "-o", "out")
    code, out, err = aegis(*words, "--max-requests", "12", "--concurrency", "1")
    assert (code, "1 of 3 topics" in out, "stopped: --max-requests 12" in err) == (0, True, True)
    code, out, _ = aegis(*words, "--json")
    told = json.loads(out)
    assert (code, told["finished"], told["requests"], told["interrupted"]) == (0, 3, 24, 0)
    assert told["cost"] is None, "nobody knows the price"
    records, pairs = rows(place / "out" / "records.jsonl"), rows(place / "out" / "pairs.jsonl")
    assert (len(records), len(pairs)) == (3, 3)
    assert records[0]["provenance"]["backend"] == "codex"
    assert rows(place / "out" / "notes.jsonl")[0]["facts"][0]["source"] == "Book 1"
    assert [row["out"] for row in rows(place / "out" / "log.jsonl")] == [3, 3, 3, 3]
    with sqlite3.connect(ledger_path(place / "out")) as database:
        kept = database.execute("SELECT count(*), count(raw), sum(input_tokens) FROM calls")
        assert kept.fetchone() == (24, 24, 24 * 120)
    code, out, _ = aegis(*words, "--json")
    assert (code, json.loads(out)["requests"], len(calls(place))) == (0, 24, 48)


def test_what_cannot_be_is_told_before_the_first_call(place: Path, aegis: Any) -> None:
    install(place, "codex", "logged out")
    (place / "prices.yaml").write_text("m: {input: x, output: 1}")
    for words, problem in (
        (("--backend", "codex"), "nobody is logged in"),
        (("--backend", "codex", "--max-cost", "1"), "the price of --model None is not known"),
        (("--backend", "copilot"), "--backend must be one of local, codex"),
        (("--backend", "openai"), "--model is needed"),
        (("--prices", "prices.yaml"), "m.input must be a number of dollars"),
    ):
        code, _, err = aegis(OURS, "-o", "out", *words)
        assert (code, problem in err) == (2, True), err
    assert aegis(OURS)[0] == 2
    assert not (place / "out").exists()
    assert calls(place) == []


def test_lines_that_are_no_topics_are_kept_with_their_reason(place: Path, aegis: Any) -> None:
    install(place, "w", like="plain")
    lines = ['{"question": "堤防とは何ですか。"}', '{"ask": "taro@example.com"}']
    (place / "t.jsonl").write_text("\n".join(lines))
    assert aegis("t.jsonl", "--skip-bad", "--backend", "cli:w", "-o", "out")[0] == 0
    (row,) = rows(place / "out" / "rejected.jsonl")
    assert row["where"] == "t.jsonl:2"
    assert "'ask' is not a field" in row["reason"]
    assert "taro" not in json.dumps(row)
    assert rows(place / "out" / "records.jsonl")[0]["id"] == "generated-t.jsonl:1-1"
    (first, *_) = rows(place / "out" / "log.jsonl")
    assert (first["step"], first["in"], first["out"]) == ("generate topics", 2, 1)
    assert sum(first["reasons"].values()) == 1


def test_topics_in_shift_jis_are_read(place: Path, aegis: Any) -> None:
    install(place, "w", like="plain")
    (place / "t.yaml").write_bytes("- 堤防とは何ですか。\n".encode("cp932"))
    code, _, err = aegis("t.yaml", "--backend", "cli:w", "-o", "out")
    assert (code, "is read as Shift_JIS" in err) == (0, True)
    assert rows(place / "out" / "records.jsonl")[0]["prompt"].startswith("決まり")


def test_a_failing_program_ends_resumable(place: Path, aegis: Any) -> None:
    install(place, "codex", "failing")
    words = (OURS, "--backend", "codex", "--limit", "1", "--retries", "0", "-o", "out")
    code, _, err = aegis(*words)
    assert (code, "1 of 1 topics brought no answer" in err) == (75, True)
    install(place, "codex", "good")
    assert aegis(*words)[0] == 0


def test_prices_of_the_user_come_first(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("gpt-5: {input: 7, output: 8}\nmine: {input: 0, output: 0}\n")
    prices = load_prices(tmp_path / "p.yaml")
    found = [find_price(prices, name) for name in ("gpt-5-2025", "mine-1", "openai/gpt-4o", None)]
    assert [price and price.input for price in found] == [7, 0, 2.5, None]
    assert find_price(load_prices(), "gpt-5-mini-2025-08-07") == load_prices()["gpt-5-mini"]
    assert find_price(load_prices(), "gpt-5.9") is None, "a newer model's price is not known"
    (tmp_path / "p.yaml").write_text("m: {input: 1, output: 1}\nm-pro: {input: 9, output: 9}\n")
    price = find_price(load_prices(tmp_path / "p.yaml"), "m-pro-2026")
    assert price
    assert price.input == 9, "the longest name counts"


def work(place: Path, target: Path) -> None:
    """Generate six topics with a program that takes a moment, three calls at a time."""
    backend = open_backend(BackendChoice("cli:w", timeout_s=60))
    patience = Patience(first_wait_s=0.01)
    asked = Calls(backend, Ledger(ledger_path(target)), patience=patience)
    plan = TopicPlan(concurrency=3)
    write_generated(target, generate(read_topics(OURS).topics[8:14], asked, plan), asked, plan)


def forked(place: Path, target: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(place, target)
        code = 0
    finally:
        os._exit(code)


def timeless(folder: Path) -> list[dict[str, Any]]:
    kept = []
    for name in ("records.jsonl", "pairs.jsonl", "notes.jsonl"):
        for row in rows(folder / name):
            row.get("provenance", {}).pop("time", None)
            kept.append(row)
    return kept


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_instant_nothing_is_paid_twice(place: Path, kills: int) -> None:
    """SIGKILL at random instants: the same set, and no call whose answer was there is made again.

    Where a run ends before its kill, another folder is begun.
    """
    install(place, "w", "some ms", like="plain")
    begun = time.monotonic()
    work(place, place / "whole")
    whole_s, expected = time.monotonic() - begun, timeless(place / "whole")
    assert len(expected) == 18
    chance, done, folders = random.Random(kills), 0, 0
    while done < kills:
        folders += 1
        (place / "calls").unlink()
        target, paid = place / f"out{folders}", dict[str, int]()
        while True:
            child = forked(place, target)
            deadline = time.monotonic() + chance.uniform(0.02, 0.4 * whole_s)
            ended, status = 0, 0
            while not ended and time.monotonic() < deadline:
                ended, status = os.waitpid(child, os.WNOHANG)
                time.sleep(0.002)
            if not ended:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                done += 1
            counted = Counter(prompt for word, prompt in calls(place) if word == "begun")
            assert all(counted[prompt] == count for prompt, count in paid.items()), "paid twice"
            paid = {prompt: counted[prompt] for prompt in answered(target)}
            if ended:
                assert os.waitstatus_to_exitcode(status) == 0
                break
        assert timeless(target) == expected


def answered(target: Path) -> list[str]:
    """Return the prompts whose answers are in the ledger."""
    if not ledger_path(target).exists():
        return []
    with sqlite3.connect(ledger_path(target)) as database:
        try:
            found = database.execute("SELECT prompt FROM calls WHERE state = 'answered'").fetchall()
        except sqlite3.OperationalError:  # killed before the table was made
            return []
    return [digest(prompt) for (prompt,) in found]

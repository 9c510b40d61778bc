"""A run with several datasets, as a user gives it: what it leaves to look at, and what does not
start it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_run import THINKING, aegis, own_pairs, own_records
from tests.runs.test_trackers import shown


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    own_records(folder / "own.jsonl")
    own_pairs(folder / "pairs.jsonl")
    prompts = [f"another {i * 7919 % 1000} {'xyz'[i % 3] * 4}" for i in range(40)]
    rows: list[dict[str, Any]] = [{"prompt": prompt, "decision": "DENY"} for prompt in prompts]
    rows += [{**rows[0], "thinking": THINKING, "final": "Not here."}]
    (folder / "more.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    (folder / "config.yaml").write_text(
        f"base: {base_folder.as_posix()}\n"
        "threads: 2\n"
        "data:\n"
        "  {seed_records: false, records: [own.jsonl], pairs: [pairs.jsonl],\n"
        "   generate: {samples: 2, max_new_tokens: 4}}\n"
        "evaluate: {questions: 0, benchmark_items: 0, probe_records: 0}\n"
        "train:\n"
        "  {epochs: 2, lr: 1e-3, datasets: [{path: more.jsonl, weight: 0.5}],\n"
        "   reward: {epochs: 1, lora: {layers: [0.5, 1.0]}},\n"
        "   ppo: {updates: 2, batch: 4, section_tokens: 4, final_tokens: 6}}\n"
    )
    return folder


def test_a_run_leaves_curves_evidence_and_what_it_was_mixed_of(place: Path) -> None:
    first = aegis("run", "config.yaml", cwd=place)
    assert first.returncode == 0, first.stderr
    latest = place / "runs" / "latest"
    histories = {
        "sft": "sft/history.jsonl",
        "reward": "reward/history.jsonl",
        "ppo": "adapter/ppo_history.jsonl",
    }
    for step, history in histories.items():
        logs = [json.loads(line) for line in (latest / history).read_text().splitlines()]
        curves = shown(latest / "tensorboard" / step)
        assert [number for number, _ in curves["gradient_norm"]] == [
            log.get("step", log.get("update")) for log in logs
        ]
    for name in (
        "sft/phase_transition.png",
        "adapter/phase_transition.png",
        "reward/learning_curve.png",
    ):
        assert (latest / name).stat().st_size > 5000, name
    evidence = json.loads((latest / "adapter" / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["alpha"]["rate"] > 0
    card = json.loads((latest / "sft" / "so8.json").read_text(encoding="utf-8"))
    own, more = card["training"]["datasets"]
    assert (own["name"], own["weight"], more["name"], more["weight"]) == (
        "records",
        1.0,
        "more.jsonl",
        0.5,
    )
    assert more["without_thinking"] == 1
    assert card["training"]["examples"] == own["train"] + own["pairs"] + round(0.5 * more["train"])
    assert str(place) not in json.dumps(card["training"])

    again = aegis("run", "config.yaml", "--set", "tracking=[]", cwd=place)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("skipped") == 4
    with (place / "more.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "one more of them", "decision": "DENY"}\n')
    changed = aegis("train", "sft", "config.yaml", cwd=place)
    assert changed.returncode == 0, changed.stderr
    grown = json.loads((latest / "sft" / "so8.json").read_text(encoding="utf-8"))["training"][
        "datasets"
    ][1]
    assert grown["read"] == more["read"] + 1
    curves = shown(latest / "tensorboard" / "sft")
    steps = [number for number, _ in curves["loss"]]
    assert steps == sorted(set(steps))

"""SIGKILL at any instant of a training: it resumes, and ends with the same weights and the same
history to the last bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.crash.report import Report

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")


def campaign(folder: Path, *, training: str, kills: int, every: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.crash.killer", str(folder), "--training", training]
    command += ["--kills", str(kills), "--every", str(every)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def remarks(found: dict[str, Any]) -> str:
    """Where the kills fell."""
    phases = Counter(phase for phase, _, _ in found["kills"])
    fifths = Counter(
        min(4, int(5 * share))
        for phase, share, _ in found["kills"]
        if phase not in ("building", "resuming")
    )
    left = sum(left > 0 for _, _, left in found["kills"])
    told = ", ".join(f"{count} {phase}" for phase, count in phases.most_common())
    by_fifth = " ".join(str(fifths[number]) for number in range(5))
    halves = f"{left} left a save half done; {found['runs']} runs"
    return f"{told}; by fifths of the run {by_fifth}; {halves}"


@pytest.mark.parametrize(
    ("training", "every", "short"),
    [
        ("sft", 0, 10),
        ("sft", 3, 10),
        ("reward", 2, 6),
        ("ppo", 0, 6),
        ("ppo", 3, 6),
        ("dpo", 2, 6),
        ("grpo", 2, 6),
        ("rloo", 2, 6),
    ],
)
@pytest.mark.parametrize(
    "long", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_killed_at_any_instant_a_training_ends_to_the_last_bit(
    training: str, every: int, short: int, long: bool, tmp_path: Path, report: Report
) -> None:
    begun, kills = time.monotonic(), 10 * short if long else short
    found = campaign(tmp_path / "runs", training=training, kills=kills, every=every)
    count, took = len(found["kills"]), time.monotonic() - begun
    case = f"{training}, a save every {every or 1} step(s), {kills}"
    report.add(
        "kill",
        case,
        count=count,
        sound=count - len(found["faults"]),
        seconds=took,
        remarks=remarks(found),
    )
    assert not found["faults"], "\n".join(found["faults"])
    assert count == kills
    assert found["resumed"] > kills / 3
    phases = {phase for phase, _, _ in found["kills"]}
    if kills >= 50:  # fewer may all miss the milliseconds of a save
        assert phases & {"writing", "sealing"}
    if kills >= 100:
        assert phases >= {"training", "writing", "sealing"}
        assert {min(4, int(5 * share)) for _, share, _ in found["kills"]} == set(range(5))

"""What befalls a machine under a desk, to the command as a user gives it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from aegis.storage.artifact import read_manifest
from tests.e2e.test_run import aegis, own_pairs, own_records

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")


@pytest.fixture(scope="module")
def config(base_folder: Path) -> str:
    return (
        f"base: {base_folder.as_posix()}\n"
        "threads: 1\n"
        "durable: {interval_s: 0.3}\n"
        "data:\n"
        "  {seed_records: false, records: [own.jsonl], pairs: [pairs.jsonl],\n"
        "   generate: {samples: 2, max_new_tokens: 4}}\n"
        "model: {lora: {dropout: 0.1}}\n"
        "evaluate: {questions: 0, benchmark_items: 0, probe_records: 0}\n"
        "train:\n"
        "  {epochs: 12, lr: 1e-3, batch_tokens: 256, reward: {batch_tokens: 256, epochs: 4},\n"
        "   ppo: {updates: 4, batch: 4, section_tokens: 4, final_tokens: 6}}\n"
    )


def place(folder: Path, config: str) -> Path:
    folder.mkdir(exist_ok=True)
    own_records(folder / "own.jsonl")
    own_pairs(folder / "pairs.jsonl")
    (folder / "config.yaml").write_text(config)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    folder = place(tmp_path_factory.mktemp("uninterrupted"), config)
    result = aegis("run", "config.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "AEGIS_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "aegis", "run", "config.yaml"]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def in_training(folder: Path, step: str = "sft") -> bool:
    """At least one snapshot after the first step is acknowledged."""
    snapshots = folder.glob(
        f"runs/latest/checkpoints/so8t_ppo_training/{step}/checkpoint_rolling_*"
    )
    return any(int(path.name.split("_")[2]) > 0 for path in snapshots)


def status(folder: Path) -> dict[str, Any]:
    return json.loads(aegis("status", "--json", cwd=folder).stdout)


def same(one: Path, two: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.glob("runs/latest/*/*.safetensors"))
    assert {"adapter_model", "so8", "tags", "decision_head", "value_head", "reward_head"} <= {
        path.stem for path in files
    }
    for name in files:
        left, right = (load_file(folder / name) for folder in (one, two))
        assert left.keys() == right.keys()
        assert all((left[key] == right[key]).all() for key in left), name
    for name in ("adapter/history.jsonl", "reward/history.jsonl", "adapter/ppo_history.jsonl"):
        first, second = (
            (folder / "runs" / "latest" / name).read_text().splitlines() for folder in (one, two)
        )
        assert [_timeless(line) for line in first] == [_timeless(line) for line in second], name


def _timeless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if "second" not in key}


def test_killed_and_resumed_is_uninterrupted(
    uninterrupted: Path, tmp_path: Path, config: str
) -> None:
    folder = place(tmp_path / "killed", config)
    process = start(folder)
    wait_for(lambda: in_training(folder), process)
    process.send_signal(signal.SIGSTOP)  # it trains no further while it is looked at
    alive = status(folder)
    assert alive["progress"]["doing"] == "training"
    assert (alive["alive"], alive["interrupted"]) == (True, False)
    assert alive["last_snapshot"]["age_s"] < 60
    refused = aegis("run", "config.yaml", cwd=folder)
    assert (refused.returncode, "another process is at work here" in refused.stderr) == (1, True), (
        refused.stderr
    )
    process.kill()
    process.communicate()
    dead = status(folder)
    assert (dead["alive"], dead["interrupted"]) == (False, True)
    assert "cut off" in aegis("status", cwd=folder).stdout
    watched = aegis("watch", "runs/latest", "--check-only", "--json", cwd=folder)
    assert (watched.returncode, json.loads(watched.stdout)["state"]) == (75, "dead"), watched.stderr
    result = aegis("run", "config.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "ended in the middle of so8t_ppo_training" in result.stderr
    assert "resumed from checkpoint_" in result.stderr
    assert result.stderr.count("finished before, skipped") == 2
    same(uninterrupted, folder)
    logs = list((folder / "runs" / "latest" / "progress_logs").glob("progress_2*.json"))
    assert logs
    assert (folder / "runs" / "latest" / "progress_logs" / "progress_summary.json").is_file()


def test_a_stop_signal_saves_and_says_how_to_go_on(
    uninterrupted: Path, tmp_path: Path, config: str
) -> None:
    folder = place(tmp_path / "stopped", config)
    process = start(folder)
    wait_for(lambda: in_training(folder), process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "SIGTERM: stopping at the end of this step" in told
    assert "Run the same command again to go on, from step" in told
    assert list(folder.glob("runs/latest/checkpoints/so8t_ppo_training/*/checkpoint_emergency_*"))
    assert [stage["state"] for stage in status(folder)["stages"]] == [
        "completed",
        "completed",
        "stopped",
        "pending",
    ]
    assert aegis("watch", "runs/latest", "--check-only", cwd=folder).returncode == 75
    newest = max(
        (path for path in folder.glob("runs/latest/checkpoints/so8t_ppo_training/*/checkpoint_*")),
        key=lambda path: read_manifest(path).facts["step"],
    )
    content = bytearray((newest / "state.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.safetensors").write_bytes(content)
    result = aegis(
        "run", "config.yaml", "--set", "durable.interval_s=60", cwd=folder
    )  # the same run, saved more rarely
    assert result.returncode == 0, result.stderr
    assert f"snapshot {newest.name} is damaged" in result.stderr
    same(uninterrupted, folder)


@pytest.mark.parametrize("step", [pytest.param("reward", marks=pytest.mark.slow), "ppo"])
def test_killed_in_a_later_step_and_resumed_is_uninterrupted(
    uninterrupted: Path, tmp_path: Path, config: str, step: str
) -> None:
    folder = place(tmp_path / step, config.replace("interval_s: 0.3", "interval_s: 0.01"))
    process = start(folder)
    wait_for(lambda: in_training(folder, step), process)
    process.kill()
    process.communicate()
    steps = next(stage["steps"] for stage in status(folder)["stages"] if stage["steps"])
    assert steps["sft"]["state"] == "completed"
    assert "validation_accuracy" in steps["sft"]["metrics"]
    assert steps[step]["state"] == "running"
    result = aegis("run", "config.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "resumed from checkpoint_" in result.stderr
    same(uninterrupted, folder)


def test_the_watcher_resumes_a_dead_run(tmp_path: Path, config: str) -> None:
    folder = place(tmp_path / "watched", config)
    process = start(folder)
    wait_for(lambda: in_training(folder), process)
    process.kill()
    process.communicate()
    result = aegis(
        "watch",
        "runs/latest",
        "--auto-resume",
        "--interval",
        "1",
        "--notify",
        "echo $AEGIS_STATE > told",
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    assert status(folder)["stage"] == "completed"
    assert (folder / "told").read_text().strip() == "finished"
    assert "resumed from checkpoint_" in (folder / "runs" / "latest" / "resume.log").read_text()

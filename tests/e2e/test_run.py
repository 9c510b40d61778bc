"""The main job on a tiny random model: every stage for real, in seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

THINKING = {"task": "what it is", "safety": "nobody", "policy": "by the rule", "final": "be short"}
PLAIN_LOADER = """
import sys
sys.modules["aegis"] = None  # any import of aegis would fail
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer("hello", return_tensors="pt")["input_ids"]
print(bool(torch.isfinite(model(input_ids=ids).logits).all()))
"""


def aegis(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    environment = {
        "OMP_NUM_THREADS": "2",
        **os.environ,
        "AEGIS_HOME": str(cwd / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "aegis", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


def own_records(path: Path, count: int = 160) -> None:
    words = ["river", "engine", "paper", "garden", "music", "window", "bread", "winter"]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            decision = ("ALLOW", "ESCALATION", "DENY", "REFUSE")[i % 4]
            prompt = f"{words[i % 8]} {words[i // 8 % 8]} {i * 7919 % 1000} {decision[0] * 3}"
            row: dict[str, Any] = {"id": f"r{i}", "prompt": prompt, "decision": decision}
            if i % 10 == 0:
                row |= {"thinking": THINKING, "final": "So it is."}
            file.write(json.dumps(row) + "\n")


def own_pairs(path: Path, count: int = 24) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            good = {"decision": "ALLOW", "thinking": THINKING, "final": f"Yes, {i}."}
            bad = {"decision": "REFUSE", "thinking": THINKING, "final": "No."}
            file.write(
                json.dumps({"id": f"p{i}", "prompt": f"pair {i}", "chosen": good, "rejected": bad})
                + "\n"
            )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    own_records(folder / "own.jsonl")
    (folder / "config.yaml").write_text(
        f"base: {base_folder.as_posix()}\n"
        "threads: 2\n"
        "data:\n"
        "  {seed_records: false, records: [own.jsonl],\n"
        "   generate: {samples: 2, max_new_tokens: 4}}\n"
        "evaluate: {questions: 3, benchmark_items: 3, probe_records: 40}\n"
        "train:\n"
        "  {epochs: 1, lr: 1e-3, ppo: {updates: 1, batch: 4, section_tokens: 4, final_tokens: 6}}\n"
    )
    return folder


@pytest.fixture(scope="module")
def first(place: Path) -> subprocess.CompletedProcess[str]:
    return aegis("run", "config.yaml", cwd=place)


def test_the_main_job_runs_and_is_not_repeated(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    assert first.returncode == 0, first.stderr
    for told in ("macro F1", "TF-IDF", "candidate, against base: "):
        assert told in first.stdout
    latest = place / "runs" / "latest"
    for name in (
        "adapter/so8.safetensors",
        "model/config.json",
        "report.html",
        "report.md",
        "answers/answers.json",
        "benchmarks/candidate/plain_facts.json",
        "results/probe/items.jsonl",
        "results/words/metrics.json",
        "model/calibration.json",
    ):
        assert (latest / name).is_file(), name
    for name in ("learning_curve.png", "alpha.png", "history.jsonl"):
        assert (latest / "adapter" / name).stat().st_size > 0
    stamps = {path: path.stat().st_mtime_ns for path in latest.rglob("*.safetensors")}
    again = aegis("run", "config.yaml", cwd=place)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("skipped") == 4
    assert {path: path.stat().st_mtime_ns for path in latest.rglob("*.safetensors")} == stamps


def test_status_tells_the_stages(place: Path, first: subprocess.CompletedProcess[str]) -> None:
    status = json.loads(aegis("status", "runs/latest", "--json", cwd=place).stdout)
    assert status["stage"] == "completed"
    assert [stage["state"] for stage in status["stages"]] == ["completed"] * 4
    for stage in status["stages"]:
        assert all((Path(status["folder"]) / path).exists() for path in stage["artifacts"].values())
    assert status["session_id"] in aegis("status", cwd=place).stdout


def test_a_damaged_artifact_is_computed_again_alone(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    from aegis.runs.record import load

    folder = place / "runs" / "latest"
    before = {
        name: (folder / name / "manifest.json").stat().st_mtime_ns
        for name in ("raw", "records", "adapter", "model")
    }
    (folder / "results" / "base" / "items.jsonl").write_text("damaged")
    result = aegis("run", "config.yaml", cwd=place)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("skipped") == 3
    assert load(folder).stage == "completed"
    assert before == {name: (folder / name / "manifest.json").stat().st_mtime_ns for name in before}


def test_a_changed_setting_recomputes_only_what_it_touches(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    session = aegis("status", "--json", cwd=place).stdout
    changed = aegis("run", "config.yaml", "--set", "evaluate.confidence=0.9", cwd=place)
    assert changed.returncode == 0, changed.stderr
    assert aegis("status", "--json", cwd=place).stdout != session
    assert changed.stderr.count("taken over") == 5  # without pairs there is no reward model
    assert changed.stderr.count("skipped") == 3
    anew = aegis(
        "run", "config.yaml", "--no-auto-resume", "--set", "data.generate.samples=0", cwd=place
    )
    assert anew.returncode == 0, anew.stderr
    assert "skipped" not in anew.stderr
    assert "taken over" not in anew.stderr


def test_a_second_run_of_the_same_session_is_refused(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    from aegis.runs.record import load
    from aegis.storage.lock import only_process

    assert aegis("run", "config.yaml", cwd=place).returncode == 0
    with only_process(load(place / "runs" / "latest").folder):
        second = aegis("run", "config.yaml", cwd=place)
    assert second.returncode == 1
    assert "another process is at work here" in second.stderr


def test_judging_one_prompt_and_a_file(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    one = aegis(
        "judge",
        "--model",
        "runs/latest/model",
        "How do I kill a Python process?",
        "--json",
        cwd=place,
    )
    verdict = json.loads(one.stdout)
    assert set(verdict) == {"prompt", "decision", "probabilities", "rule", "ms"}
    assert sum(verdict["probabilities"].values()) == pytest.approx(1)
    (place / "prompts.jsonl").write_text(
        '{"prompt": "a", "id": 7}\n{"prompt": "助けて"}\n', encoding="utf-8"
    )
    files = ("--input", "prompts.jsonl", "--output", "out/verdicts.jsonl")
    assert aegis("judge", "--model", "runs/latest/model", *files, cwd=place).returncode == 0
    rows = [
        json.loads(line)
        for line in (place / "out" / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["prompt"] for row in rows] == ["a", "助けて"]
    assert rows[0]["id"] == 7
    assert len(rows[0]["probabilities"]) == 4


def test_evaluating_decisions_writes_metrics(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    arguments = (
        "evaluate",
        "decisions",
        "--model",
        "runs/latest/model",
        "--data",
        "own.jsonl",
        "-o",
        "measured",
    )
    result = aegis(*arguments, cwd=place)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((place / "measured" / "metrics.json").read_text())
    assert metrics["n"] == 160
    for name in ("accuracy", "macro_f1", "false_positive_rate", "miss_rate", "over_refusal_rate"):
        low, high = metrics[name]["interval"]
        assert low <= metrics[name]["value"] <= high
    assert aegis(*arguments, cwd=place).returncode == 0  # and again, into the same folder


def test_folding_gives_an_ordinary_model(
    place: Path, first: subprocess.CompletedProcess[str]
) -> None:
    result = aegis("fold", "runs/latest/adapter", "-o", "folded", "--json", cwd=place)
    assert result.returncode == 0, result.stderr
    certificate = json.loads((place / "folded" / "certificate.json").read_text())
    assert certificate["max_abs_logit_difference"] <= 1e-3
    assert certificate["top1_agreement"] == 1.0
    assert certificate["probes"] >= 64
    assert set(certificate["languages"]) == {"en", "ja"}
    metadata = json.loads((place / "folded" / "metadata.json").read_text())
    assert {"aegis_version", "session_id", "features", "training", "adapter_sha256"} <= set(
        metadata
    )
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN_LOADER, "folded"], cwd=place, capture_output=True, text=True
    )
    assert plain.stdout.strip().endswith("True"), plain.stderr
    config = json.loads((place / "folded" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert "auto_map" not in config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "none.yaml"), "none.yaml: cannot be read"),
        (("run", "config.yaml", "--set", "trian.lr=1"), "did you mean 'train'"),
        (("run", "config.yaml", "--set", "base=no/such/model/here"), "no such folder"),
        (
            ("run", "config.yaml", "--set", "data.records=[bad.jsonl]"),
            "bad.jsonl:2: decision 'MAYBE' is not one of",
        ),
        (
            ("run", "config.yaml", "--set", "data.records=[missing.jsonl]"),
            "missing.jsonl: cannot be read",
        ),
        (("judge", "--model", "none", "x"), "no such model folder"),
        (("judge", "--model", "runs/latest/model"), "give either prompts"),
        (("judge", "--model", "runs/latest/model", " "), "non-empty"),
        (("fold", "runs/latest/model", "-o", "f"), "not a whole adapter folder"),
        (("fold", "runs/latest/adapter", "-o", "."), "holds the input"),
        (("fold", "runs/latest/adapter", "-o", "f", "--dtype", "int3"), "--dtype must be"),
        (("fold", "runs/latest/adapter", "-o", "f", "--base", "other"), "made for another base"),
        (
            ("evaluate", "decisions", "--model", "none", "--data", "bad.jsonl", "-o", "x"),
            "bad.jsonl:2",
        ),
        (("status", "nowhere"), "no such session"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    place: Path,
    first: subprocess.CompletedProcess[str],
    save_base: Any,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    (place / "bad.jsonl").write_text(
        '{"prompt": "x", "decision": "ALLOW"}\n{"prompt": "y", "decision": "MAYBE"}\n'
    )
    if not (place / "other").exists():
        shutil.copytree(save_base("llama", seed=3), place / "other")
    before = sorted((place / "runs").iterdir())
    result = aegis(*arguments, cwd=place)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted((place / "runs").iterdir()) == before


def test_debug_shows_the_traceback(place: Path) -> None:
    result = aegis("run", "none.yaml", "--debug", cwd=place)
    assert result.returncode == 2
    assert "Traceback" in result.stderr


def test_a_full_disk_keeps_what_was_finished(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from aegis import cli
    from aegis.runs.record import load
    from aegis.storage import artifact

    own_records(tmp_path / "own.jsonl")
    shutil.copy(place / "config.yaml", tmp_path)
    settings = ["--set", "data.generate.samples=0", "--set", "train.epochs=0.1"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["aegis", "run", "config.yaml", *settings])
    written = artifact.sync_file

    def full(path: Path) -> None:
        if ".adapter" in str(path):
            raise OSError(28, "No space left on device")
        written(path)

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "sync_file", full)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 1
    assert "the disk is full" in capsys.readouterr().err
    session = load(tmp_path / "runs" / "latest")
    assert session.stage == "failed"
    assert not (session.folder / "adapter").exists()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0
    assert capsys.readouterr().err.count("skipped") == 2


def test_doctor_reports_as_json(place: Path) -> None:
    assert json.loads(aegis("doctor", "--json", cwd=place).stdout)["machine"]["cores"] >= 1


def test_a_hidden_size_that_is_no_multiple_of_8_is_told(place: Path) -> None:
    folder = place / "odd"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 36, "num_attention_heads": 3}'
    )
    (folder / "model.safetensors").write_bytes(b"")
    result = aegis("run", "config.yaml", "--set", "base=odd", cwd=place)
    assert result.returncode == 2
    assert "hidden_size must be a multiple of 8" in result.stderr


def test_skip_bad_sets_lines_aside(place: Path, tmp_path: Path) -> None:
    own_records(tmp_path / "own.jsonl")
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write('{"prompt": "y", "decision": "MAYBE"}\n')
    shutil.copy(place / "config.yaml", tmp_path)
    settings = ("--set", "data.generate.samples=0", "--set", "train.epochs=0.1")
    result = aegis("run", "config.yaml", "--skip-bad", *settings, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rejected = (tmp_path / "runs" / "latest" / "records" / "rejected.jsonl").read_text()
    assert "own.jsonl:161" in rejected


def test_a_failed_stage_is_remembered_and_resumed(place: Path, tmp_path: Path) -> None:
    own_records(tmp_path / "own.jsonl")
    shutil.copy(place / "config.yaml", tmp_path)
    settings = (
        "--set",
        "data.generate.samples=0",
        "--set",
        "train.epochs=0.1",
        "--set",
        "export.max_logit_difference=1e-30",
    )
    result = aegis("run", "config.yaml", *settings, cwd=tmp_path)
    assert result.returncode == 1
    assert "export.max_logit_difference is 1e-30" in result.stderr
    status = json.loads(aegis("status", "--json", cwd=tmp_path).stdout)
    assert status["stage"] == "failed"
    assert [stage["state"] for stage in status["stages"]] == ["completed"] * 3 + ["failed"]
    assert not (tmp_path / "runs" / "latest" / "model").exists()
    again = aegis("run", "config.yaml", *settings, cwd=tmp_path)
    assert again.stderr.count("skipped") == 3

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from aegis.runs import foreign_log
from tests.runs.conftest import Time

STEPS = [f"step {number}/200 loss: 0.5" for number in range(200)]
RECOVERED = [
    "Traceback (most recent call last):",
    '  File "a.py", line 1',
    "ModuleNotFoundError: No module named 'flash_attn'",
]


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        ([*STEPS], "running"),
        ([*STEPS, "Training completed."], "finished"),
        ([*STEPS, "{'train_runtime': 12.3, 'train_loss': 0.5}", "bye"], "finished"),
        ([*STEPS, "Saving final model to out/"], "finished"),
        ([*STEPS, "学習が完了しました"], "finished"),
        ([*STEPS, "すべての処理が完了しました。"], "finished"),
        (["データの読み込みが完了しました", "エポック 1 の学習が完了しました"], "running"),
        (
            ["Epoch 1: training complete", "the model is written when training is finished"],
            "running",
        ),
        (["Training completed", "***** Running training *****", "step 1/9"], "running"),
        (["Training completed", *STEPS], "running"),
        ([*STEPS, "RuntimeError: CUDA error", "bye"], "failed"),
        ([*STEPS, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"], "failed"),
        ([*STEPS, "Killed"], "failed"),
        ([*STEPS, "[rank1]: OSError: no such file"], "failed"),
        ([*STEPS, "val_error: 0.5", "MeanSquaredError: 0.1"], "running"),
        ([*STEPS, "Segmentation fault (core dumped)"], "failed"),
        ([*STEPS, "{'loss': nan, 'epoch': 1}"], "failed"),
        ([*STEPS, "Training completed", "ValueError: cannot upload"], "failed"),
        (["RuntimeError: once", *STEPS], "running"),
        ([*RECOVERED], "failed"),
        ([*RECOVERED, "falling back to eager attention"], "running"),
        ([*RECOVERED, "step 1/200"], "running"),
        ([*RECOVERED, "import of flash_attn2 succeeded", "RuntimeError: other"], "failed"),
        ([*STEPS, "RuntimeError: in a worker", "Training completed"], "finished"),
        ([*STEPS, "Traceback (most recent call last):", "KeyboardInterrupt"], "stopped"),
    ],
)
def test_what_a_log_says(tmp_path: Path, hands: Time, lines: list[str], state: str) -> None:
    log = tmp_path / "train.log"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    found = hands.status(tmp_path)
    assert found.state == state, found.evidence
    assert found.run == str(log)


@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "utf-16"])
def test_japanese_logs_are_read_in_their_encoding(
    tmp_path: Path, hands: Time, encoding: str
) -> None:
    log = tmp_path / "train.out"
    text = "学習を開始\n" + "処理中です\n" * 100_000 + "学習完了\n"
    log.write_bytes(
        b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16" else text.encode(encoding)
    )
    found = hands.status(log)
    assert (found.state, found.evidence) == ("finished", "the log says: 学習完了")


@pytest.mark.skipif(os.name == "nt", reason="files are not sparse by themselves")
def test_of_a_huge_log_the_end_is_read(tmp_path: Path, hands: Time) -> None:
    log = tmp_path / "train.log"
    with log.open("wb") as file:
        file.write(b"Training completed\n")
        file.truncate(1 << 33)  # sparse: 8 GiB
        file.seek(1 << 33)
        file.write(b"\n 10%|#   | 1/10 [\r 40%|##  | 4/10 [00:01\r\n")
    begun = time.monotonic()
    found = hands.status(log)
    assert time.monotonic() - begun < 2
    assert (found.state, found.done, found.total) == ("running", 4, 10)
    assert foreign_log.read_tail(log, lines=1) == [" 40%|##  | 4/10 [00:01"]


def test_a_log_goes_silent_by_the_own_clock(tmp_path: Path, hands: Time) -> None:
    log = tmp_path / "train.log"
    log.write_text("step 1/9\n")
    found = hands.status(log)
    hands.wall += 100_000
    assert hands.status(log, found).state == "running"
    hands.monotonic += 400
    found = hands.status(log, found)
    assert (found.state, found.exit_code, found.alive, found.pid) == ("silent", 75, None, None)
    assert "its process is unknown" in found.evidence


def test_a_final_model_tells_the_end_of_a_silent_log(tmp_path: Path, hands: Time) -> None:
    log = tmp_path / "train.log"
    log.write_text("2026-01-02 03:04:05 step 1/9\n")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert hands.status(log).state == "running"
    hands.wall += 1000
    assert hands.status(log).state == "finished"
    os.utime(tmp_path / "model.safetensors", (1.0, 1.0))  # a base that lay there before
    assert hands.status(log).state == "silent"


def test_a_trainer_state_is_counted(tmp_path: Path, hands: Time) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    state = {"global_step": 5, "log_history": [{"loss": 0.5, "step": 1}], "max_steps": 9}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=2))
    found = hands.status(tmp_path)
    assert (found.state, found.done, found.total) == ("running", 5, 9)
    (folder / "trainer_state.json").write_text(json.dumps({**state, "global_step": 9}, indent=2))
    assert hands.status(tmp_path).state == "finished"

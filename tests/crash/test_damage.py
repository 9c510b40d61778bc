"""A flipped bit or a truncation in any file of a training's newest snapshot: the one before is
taken up, and that is told."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.model.adapted import attach
from aegis.storage.snapshots import SnapshotStore
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, train_sft
from aegis.train.snapshot_policy import SnapshotPolicy
from tests.conftest import tiny_model
from tests.crash.report import Report
from tests.train.test_sft import encoded, settings
from tests.train.test_state import MODEL, same


def train(tokenizer: Any, folder: Path, told: list[str]) -> Any:
    torch.manual_seed(0)
    adapted = attach(tiny_model(), MODEL)
    examples = encoded(tokenizer)[0]
    store = SnapshotStore(folder, fingerprint="f", keep=3, say=told.append)
    snapshots = SnapshotPolicy(store, interval_s=0, say=told.append)
    data, loop = SupervisedData(examples, examples[:8]), LoopSettings(pad_id=1, seed=3)
    services = TrainServices(snapshots=snapshots)
    result = train_sft(adapted, data, settings(epochs=1), loop, services)
    return adapted, result


def damages(content: bytes, positions: int) -> Iterator[tuple[str, bytes]]:
    """The content with one bit flipped or the end cut off, at both ends, in the middle and
    anywhere."""
    generator, size = random.Random(len(content)), len(content)
    places = [0, size - 1, size // 2, *(generator.randrange(size) for _ in range(positions))]
    for place in places:
        bit = generator.randrange(8)
        yield (
            f"bit {bit} of byte {place}",
            content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :],
        )
    for size in dict.fromkeys([*places, len(content) // 4096 * 4096 - 4096]):
        if 0 <= size < len(content):
            yield f"cut at {size}", content[:size]


@pytest.mark.parametrize("positions", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_damage_to_any_file_falls_back_and_is_told(
    positions: int, tokenizer: Any, tmp_path: Path, report: Report
) -> None:
    original = tmp_path / "original"
    whole = train(tokenizer, original, [])
    files = [
        path.relative_to(original)
        for path in sorted((original / "checkpoint_final").rglob("*"))
        if path.is_file()
    ]
    assert {path.name for path in files} == {"manifest.json", "state.json", "state.safetensors"}
    step = len(whole[1].history) - 1
    for file in files:
        begun, count, wrong = time.monotonic(), 0, []
        for how, content in damages((original / file).read_bytes(), positions):
            count += 1
            wrong += fault(original, file, content, step=step, how=how)
        case, took = f"{file.name}, {positions + 3} places", time.monotonic() - begun
        report.add("damage", case, count=count, sound=count - len(wrong), seconds=took)
        assert not wrong, "\n".join(wrong)
    begun = time.monotonic()
    resumed_from_damage(whole, files, tokenizer, original)
    case, took = f"resumed past it, {positions}", time.monotonic() - begun
    report.add(
        "damage", case, count=len(files), sound=len(files), seconds=took, remarks="to the last bit"
    )


def fault(original: Path, file: Path, content: bytes, *, step: int, how: str) -> list[str]:
    """What is wrong with how a store takes this damage, in at most one line."""
    copy, told = original.with_name("copy"), []
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(original, copy)
    (copy / file).write_bytes(content)
    found = SnapshotStore(copy, fingerprint="f", keep=3, say=told.append).newest()
    right = found is not None and found.step == step
    said = (
        len(told) == 1
        and told[0].startswith(f"snapshot {file.parts[0]} is damaged (")
        and "the one before" in told[0]
    )
    return [] if right and said else [f"{file.name}, {how}: {found}, said {told}"]


def resumed_from_damage(whole: Any, files: list[Path], tokenizer: Any, original: Path) -> None:
    """Whichever file is damaged, the training resumes from the step before and ends as the whole
    one did."""
    for file in files:
        copy, told = original.with_name("copy"), list[str]()
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(original, copy)
        content = (copy / file).read_bytes()
        (copy / file).write_bytes(content[: len(content) // 2])
        same(whole, train(tokenizer, copy, told))
        assert "is damaged" in told[0]
        assert told[1].endswith(f"step {len(whole[1].history) - 1}")

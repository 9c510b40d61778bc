"""Stopped at any step and resumed, a training ends as if nothing had happened."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import LoraSettings, ModelSettings
from aegis.errors import AegisError, StoppedError
from aegis.model.adapted import attach
from aegis.storage.snapshots import SnapshotStore
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, train_sft
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.state import (
    ModuleState,
    OptimizerState,
    RandomState,
    Values,
    read_state,
    write_state,
)
from tests.conftest import tiny_model
from tests.train.test_sft import encoded, settings

MODEL = ModelSettings(
    lora=LoraSettings(dropout=0.1)
)  # dropout draws random numbers: they must be resumed, too


class StopAt:
    """Asks for a stop after so many step ends; never if None."""

    def __init__(self, step: int | None) -> None:
        self.left = step

    def __call__(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise StoppedError("stopped by SIGTERM")


def attempt(
    tokenizer: Any, folder: Path | None, *, stop: int | None = None, interval_s: float = 0.0
) -> Any:
    torch.manual_seed(0)
    adapted = attach(tiny_model(), MODEL)
    examples = encoded(tokenizer)[0]
    snapshots = None
    if folder:
        store = SnapshotStore(folder, fingerprint="f", keep=3)
        snapshots = SnapshotPolicy(store, interval_s=interval_s, check=StopAt(stop))
    data, loop = SupervisedData(examples, examples[:8]), LoopSettings(pad_id=1, seed=3)
    services = TrainServices(snapshots=snapshots)
    result = train_sft(adapted, data, settings(epochs=2.5), loop, services)
    return adapted, result


def same(one: Any, two: Any) -> None:
    (first, a), (second, b) = one, two
    timeless = [[{**asdict(log), "seconds": 0} for log in result.history] for result in (a, b)]
    assert timeless[0] == timeless[1]
    assert a.validation == b.validation
    assert (a.held_out[0] == b.held_out[0]).all()
    weights = zip(first.state_dict().items(), second.state_dict().values(), strict=True)
    assert [name for (name, x), y in weights if not torch.equal(x, y)] == []


def test_stopped_anywhere_and_resumed_is_uninterrupted(tokenizer: Any, tmp_path: Path) -> None:
    whole = attempt(tokenizer, None)
    steps = len(whole[1].history)
    for stop in (1, 2, steps // 2, steps - 1, steps):
        folder = tmp_path / str(stop)
        with pytest.raises(StoppedError, match=f"from step {stop}"):
            attempt(tokenizer, folder, stop=stop)
        assert any("emergency" in path.name for path in folder.iterdir())
        same(whole, attempt(tokenizer, folder))


def test_stopped_again_and_again(tokenizer: Any, tmp_path: Path) -> None:
    whole = attempt(tokenizer, None)
    for _ in range(len(whole[1].history) // 2):
        with pytest.raises(StoppedError):
            attempt(tokenizer, tmp_path, stop=2, interval_s=1e9)
    same(whole, attempt(tokenizer, tmp_path))


def test_a_finished_training_is_taken_up_at_its_end(tokenizer: Any, tmp_path: Path) -> None:
    whole = attempt(tokenizer, tmp_path)
    assert (tmp_path / "checkpoint_final").is_dir()
    same(whole, attempt(tokenizer, tmp_path))


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "module": ModuleState(module),
        "optimizer": OptimizerState(optimizer),
        "random": RandomState(),
        "values": Values(lambda: [1], lambda _: None),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("version"), "version"),
        (lambda raw: raw.update(version=99), "written by version 99"),
        (lambda raw: raw["values"].pop("random"), r"parts: missing \['random'\]"),
        (lambda raw: raw["values"].update(new=1), r"extra \['new'\]"),
        (
            lambda raw: raw["values"]["optimizer"]["groups"].append({"params": [7]}),
            "optimizer groups",
        ),
        (
            lambda raw: raw["values"]["optimizer"]["numbers"].pop("1/step"),
            r"optimizer state: missing \['step'\]",
        ),
    ],
)
def test_a_missing_or_extra_field_is_an_error(tmp_path: Path, change: Any, message: str) -> None:
    write_state(tmp_path, parts(), step=1)
    assert read_state(tmp_path, parts()) == 1
    raw = json.loads((tmp_path / "state.json").read_text())
    change(raw)
    (tmp_path / "state.json").write_text(json.dumps(raw))
    with pytest.raises(AegisError, match=message) as error:
        read_state(tmp_path, parts())
    assert "cannot be resumed from" in str(error.value)


def test_a_tensor_too_many_or_of_another_shape_is_an_error(tmp_path: Path) -> None:
    write_state(tmp_path, parts(), step=1)
    larger = parts() | {"module": ModuleState(torch.nn.Linear(4, 2))}
    with pytest.raises(AegisError, match=r"weight: \(2, 3\) torch.float32 saved, \(2, 4\)"):
        read_state(tmp_path, larger)
    with pytest.raises(AegisError, match="parameters: missing"):
        read_state(
            tmp_path, parts() | {"module": ModuleState(torch.nn.Sequential(torch.nn.Linear(3, 2)))}
        )

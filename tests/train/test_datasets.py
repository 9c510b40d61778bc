"""Datasets mixed by weight: how many examples an epoch takes, bit for bit the same again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import StoppedError
from aegis.model.adapted import attach
from aegis.storage.snapshots import SnapshotStore
from aegis.train.examples import epoch_batches, mixed
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, make_plan, train_sft
from aegis.train.snapshot_policy import SnapshotPolicy
from tests.conftest import tiny_model
from tests.train.test_sft import encoded, settings
from tests.train.test_state import MODEL, StopAt, same


def test_an_epoch_takes_the_weighted_number_of_each() -> None:
    shares = [(10, 1.0), (20, 0.25), (4, 2.5), (7, 0.0), (0, 3.0)]
    for epoch in (0, 1):
        counts = Counter(mixed(shares, seed=0, epoch=epoch))
        assert [counts[i] for i in range(10)] == [1] * 10
        assert sum(counts[i] for i in range(10, 30)) == 5
        assert max(counts[i] for i in range(10, 30)) == 1
        assert sorted(counts[i] for i in range(30, 34)) == [2, 2, 3, 3]
        assert not any(counts[i] for i in range(34, 41))
    assert mixed(shares, seed=0, epoch=0) == mixed(shares, seed=0, epoch=0)
    assert mixed(shares, seed=0, epoch=0) != mixed(shares, seed=0, epoch=1)
    assert mixed(shares, seed=0, epoch=0) != mixed(shares, seed=1, epoch=0)


def test_weight_one_is_no_mixture_at_all(tokenizer: Any) -> None:
    examples = encoded(tokenizer)[0]
    given: dict[str, Any] = {"batch_tokens": 200, "seed": 3, "epoch": 1}
    assert epoch_batches(examples, **given) == epoch_batches(examples, chosen=range(24), **given)
    plain = make_plan(examples, settings(), seed=0)
    assert plain == make_plan(examples, settings(), seed=0, shares=[(10, 1.0), (14, 1.0)])
    half = make_plan(examples, settings(epochs=1), seed=0, shares=[(10, 1.0), (14, 0.5)])[0]
    taken = [index for batch in half for index in batch]
    assert len(taken) == len(set(taken)) == 17
    assert set(range(10)) <= set(taken)


def test_stopped_and_resumed_a_mixture_is_uninterrupted(tokenizer: Any, tmp_path: Path) -> None:
    def attempt(folder: Path | None, stop: int | None = None) -> Any:
        import torch

        torch.manual_seed(0)
        adapted = attach(tiny_model(), MODEL)
        examples = encoded(tokenizer)[0]
        snapshots = None
        if folder:
            snapshots = SnapshotPolicy(
                SnapshotStore(folder, fingerprint="f", keep=3), interval_s=1e9, check=StopAt(stop)
            )
        shares = [(12, 1.0), (8, 0.5), (4, 2.5)]
        data, loop = SupervisedData(examples, examples[:8], shares), LoopSettings(pad_id=1, seed=3)
        services = TrainServices(snapshots=snapshots)
        return adapted, train_sft(adapted, data, settings(epochs=2.5), loop, services)

    whole = attempt(None)
    for stop in (2, len(whole[1].history) - 1):
        with pytest.raises(StoppedError):
            attempt(tmp_path / str(stop), stop)
        same(whole, attempt(tmp_path / str(stop)))

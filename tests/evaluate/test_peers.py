from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aegis.data.records import Record, parse_record
from aegis.evaluate import peers
from aegis.evaluate.peers import StateReader, fit_words, probe_verdicts, words_verdicts
from aegis.model.base import ModelFolder
from aegis.protocol.decisions import NAMES

WORDS = ("river", "knife", "doctor", "bomb")


def records(count: int, start: int = 0) -> list[Record]:
    """Records whose last word alone tells the decision."""
    rows = [
        {
            "id": str(number),
            "prompt": f"number {number * 7919 % 997} {WORDS[number % 4] * 3}",
            "decision": NAMES[number % 4],
        }
        for number in range(start, start + count)
    ]
    return [parse_record(row, where="f") for row in rows]


def right(verdicts: list[Any], asked: list[Record]) -> float:
    pairs = zip(verdicts, asked, strict=True)
    return float(np.mean([verdict.decision is record.decision for verdict, record in pairs]))


@pytest.fixture
def reader(save_base: Callable[..., Path]) -> StateReader:
    return StateReader.load(ModelFolder(save_base("llama")), None, batch_tokens=200)


def test_the_probe_reads_what_the_base_knows_and_learns_from_training_alone(
    reader: StateReader,
) -> None:
    train, test = records(160), records(60, 1000)
    found = probe_verdicts(reader, train, test, most=120)
    assert found
    verdicts, count = found
    assert count == 120
    assert right(verdicts, test) > 0.7  # chance is a quarter
    assert all(verdict.ms > 0 for verdict in verdicts)
    assert [sum(v.probabilities) for v in verdicts] == pytest.approx([1.0] * 60)
    assert probe_verdicts(reader, train, test, most=120, seed=1) != found


def test_states_do_not_depend_on_the_batch_and_are_read_once(
    reader: StateReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "autocast", lambda *_: contextlib.nullcontext())
    prompts = [record.prompt * (1 + number % 3) for number, record in enumerate(records(7))]
    kept: dict[str, Any] = {}

    def remember(key: str, compute: Callable[[], Any]) -> Any:
        return kept.setdefault(key, None) or kept.__setitem__(key, compute()) or kept[key]

    states, _ = reader.states(prompts, label="x", remember=remember)
    ids = torch.tensor([reader.encoder.ids(prompts[2])])
    with torch.inference_mode():
        alone = reader.model.get_decoder()(input_ids=ids).last_hidden_state[0, -1]
    assert states[2] == pytest.approx(alone.numpy(), abs=1e-4)
    assert len(kept) > 1
    reader.model.forward = reader.model.get_decoder().forward = None  # what is kept is not read
    again, _ = reader.states(prompts, label="x", remember=remember)
    assert (again == states).all()


def test_nothing_can_be_learned_from_one_decision_and_long_prompts_are_left_out(
    reader: StateReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = records(40), records(4, 1000)
    assert probe_verdicts(reader, train[::4], test, most=10) is None
    monkeypatch.setattr(peers, "_LONGEST", 0)
    assert probe_verdicts(reader, train, test, most=10) is None


def test_words_alone_decide() -> None:
    train, test = records(200), records(40, 1000)
    verdicts = words_verdicts(fit_words(train, strength=10.0), test)
    assert right(verdicts, test) == 1.0

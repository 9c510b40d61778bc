from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from aegis.engine.llamacpp_jobs import DecideJob, ReadJob, WeighJob

WIDTH, VOCABULARY = 4, 16


class FakeModel:
    """Gives states and logits that follow from the tokens of the step."""

    def __init__(self) -> None:
        self.step: list[int] = []

    def hidden(self, indices: range) -> np.ndarray:
        return np.array([[self.step[index]] * WIDTH for index in indices], dtype=np.float32)

    def logits(self, indices: range) -> np.ndarray:
        return np.stack(
            [np.random.default_rng(self.step[index]).normal(size=16) for index in indices]
        )


def run(job: Any, *, piece: int) -> Any:
    """What the job comes to, read in pieces."""
    model, pending = FakeModel(), list(job.ids)
    while not job.future.done():
        model.step, pending = pending[:piece], pending[piece:]
        if job.every_output or not pending:
            more = job.take(model, range(len(model.step)), all_read=not pending)
            pending = pending or more
    return job.future.result()


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
def test_pooling_does_not_depend_on_the_pieces(piece: int) -> None:
    ids = [1, 2, 3, 10]
    assert run(ReadJob(ids, "last+mean"), piece=piece).tolist() == [10.0] * 4 + [4.0] * 4
    assert run(ReadJob(ids, "last"), piece=piece).tolist() == [10.0] * 4


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
def test_continuations_do_not_depend_on_the_pieces(piece: int) -> None:
    def chance(last: int, token: int) -> float:
        logits = np.random.default_rng(last).normal(size=VOCABULARY)
        return float(logits[token] - np.log(np.exp(logits).sum()))

    tails = [[3, 4, 5, 6, 7], [9], [], [8, 2]]
    expected = [
        sum(chance(last, token) for last, token in zip([7, *tail], tail, strict=False))
        for tail in tails
    ]
    assert run(WeighJob([5, 7], tails), piece=piece) == pytest.approx(expected)


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
def test_the_logits_of_some_tokens_are_those_behind_the_last_id(piece: int) -> None:
    expected = np.random.default_rng(10).normal(size=VOCABULARY)[[4, 1, 9]]
    assert run(DecideJob([1, 2, 3, 10], [4, 1, 9]), piece=piece).tolist() == expected.tolist()

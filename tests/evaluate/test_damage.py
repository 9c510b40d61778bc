from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from aegis.errors import BadInputError, DataError
from aegis.evaluate.damage import decision_damage, measure_damage
from aegis.protocol.decisions import Decision

WORDS = 7


class Table:
    """A model whose logits are a function of the token and nothing else."""

    context, prefix = 100, 0

    def __init__(self, noise: float, width: int = WORDS, shift: int = 0) -> None:
        rng = np.random.default_rng(0)
        other = np.random.default_rng(1).normal(size=(WORDS, WORDS))
        self.table = (rng.normal(size=(WORDS, WORDS)) + noise * other)[:, :width].astype("f4")
        self.shift, self.read = shift, []

    def ids(self, text: str, *, special: bool | None = None) -> list[int]:
        return [(ord(letter) + self.shift) % WORDS for letter in text]

    def logits(self, ids: list[int], first: int) -> np.ndarray:
        self.read.append(ids)
        return self.table[ids[first:]]


TEXT = "the quick brown fox jumps over the lazy dog " * 5


def test_figures_are_as_defined() -> None:
    reference, model = Table(0.0), Table(0.7)
    same, changed = measure_damage(reference, {"a": Table(0.0), "b": model}, TEXT, chunk_tokens=16)  # pyright: ignore[reportArgumentType]
    assert (same.kl_mean.value, same.kl_max, same.top1.value) == (0.0, 0.0, 1.0)
    assert same.perplexity_ratio.value == 1.0
    ids, kl, ours, theirs, alike = reference.ids(TEXT), [], [], [], []
    for begin in range(0, len(ids) // 16 * 16, 16):
        for at in range(begin + 8, begin + 15):
            p = log_softmax(reference.table[ids[at]].astype(float))
            q = log_softmax(model.table[ids[at]].astype(float))
            kl.append(float((np.exp(p) * (p - q)).sum()))
            ours.append(q[ids[at + 1]])
            theirs.append(p[ids[at + 1]])
            alike.append(p.argmax() == q.argmax())
    assert changed.n == len(kl)
    assert changed.kl_mean.value == pytest.approx(np.mean(kl))
    assert changed.kl_median == pytest.approx(np.median(kl))
    assert changed.kl_999 == pytest.approx(np.percentile(kl, 99.9))
    assert changed.top1.value == pytest.approx(np.mean(alike))
    assert changed.perplexity == pytest.approx(np.exp(-np.mean(ours)))
    assert changed.perplexity_ratio.value == pytest.approx(
        np.exp(-np.mean(ours)) / np.exp(-np.mean(theirs))
    )
    low, high = changed.perplexity_ratio.interval
    assert low < changed.perplexity_ratio.value < high


def test_chunks_begin_as_a_text_does_and_can_be_fewer() -> None:
    reference = Table(0.0)
    text = chr(WORDS * 10) + TEXT  # begins with the token that begins a text
    (damage,) = measure_damage(reference, {"a": Table(0.1)}, text, chunk_tokens=16, chunks=3)  # pyright: ignore[reportArgumentType]
    assert [ids[0] for ids in reference.read] == [0, 0, 0]
    assert damage.n == 3 * 7


def test_what_cannot_be_compared_is_told() -> None:
    reference = Table(0.0)
    for models, text, message in (
        ({"b": Table(0.0)}, "short", "has 5 tokens and a chunk 16"),
        ({"b": Table(0.0, shift=1)}, TEXT, "b: splits the text into other tokens"),
        ({"b": Table(0.0, width=6)}, TEXT, "b: knows 6 tokens, the reference 7"),
    ):
        with pytest.raises((BadInputError, DataError), match=message):
            measure_damage(reference, models, text, chunk_tokens=16)  # pyright: ignore[reportArgumentType]


def test_decisions_are_compared_with_the_first() -> None:
    allow, refuse = Decision.ALLOW, Decision.REFUSE
    judges = {
        "reference": lambda prompts, advance: [allow, refuse, refuse, refuse],
        "file": lambda prompts, advance: [allow, refuse, allow, refuse],
    }
    first, second = decision_damage(judges, ["a", "b", "c", "d"], [allow, refuse, refuse, allow])
    assert (first.agreement.value, second.agreement.value) == (1.0, 0.75)
    assert first.miss_rate is not None
    assert second.miss_rate is not None
    assert (first.miss_rate.value, second.miss_rate.value, second.miss_rate.n) == (0.0, 0.5, 2)
    assert decision_damage(judges, ["a"] * 4, [allow] * 4)[0].miss_rate is None

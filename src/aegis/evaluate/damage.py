"""What quantisation changes: the distribution of the next token over a text, and decisions.

Source:
    llama.cpp, tools/perplexity: the text in chunks of n_ctx tokens, each begun with the token that
    begins a text where the model has one; tokens of the second half are scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from aegis.engine.scoring import Scorer
from aegis.errors import BadInputError, DataError
from aegis.evaluate.results import Measure
from aegis.protocol.decisions import UNSAFE, Decision
from aegis.runs.reporter import bar


@dataclass(frozen=True)
class Damage:
    """What a quantised model makes of a text, against the model that it was made from.

    Args:
        n: scored tokens.
        kl_mean, kl_median, kl_999, kl_max: KL divergence of its next-token distributions from the
            reference's, in nats; `kl_999` is the percentile 99.9.
        top1: share of tokens where both find the same one the most probable.
        perplexity, reference_perplexity: exp of the mean negative log-probability.
        perplexity_ratio: the first over the second.
    """

    name: str
    n: int
    kl_mean: Measure
    kl_median: float
    kl_999: float
    kl_max: float
    top1: Measure
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: Measure


@dataclass
class _Tally:
    """Token by token: KL divergence, whether the first is the same, and both log-probabilities."""

    kl: list[np.ndarray]
    same: list[np.ndarray]
    ours: list[np.ndarray]
    theirs: list[np.ndarray]

    def add(self, ours: np.ndarray, theirs: np.ndarray, tokens: np.ndarray) -> None:
        """Take (n, vocabulary) log-probabilities and (n,) tokens that followed."""
        self.kl.append((np.exp(theirs) * (theirs - ours)).sum(1))
        self.same.append(ours.argmax(1) == theirs.argmax(1))
        rows = np.arange(len(tokens))
        self.ours.append(ours[rows, tokens])
        self.theirs.append(theirs[rows, tokens])

    def damage(self, name: str, confidence: float) -> Damage:
        kl, same, ours, theirs = map(np.concatenate, (self.kl, self.same, self.ours, self.theirs))
        ratio = Measure.of((theirs - ours).tolist(), confidence)  # of logarithms
        low, high = ratio.interval
        return Damage(
            name=name,
            n=len(kl),
            kl_mean=Measure.of(kl.tolist(), confidence),
            kl_median=float(np.median(kl)),
            kl_999=float(np.quantile(kl, 0.999)),
            kl_max=float(kl.max()),
            top1=Measure.of(same.astype(float).tolist(), confidence),
            perplexity=float(np.exp(-ours.mean())),
            reference_perplexity=float(np.exp(-theirs.mean())),
            perplexity_ratio=Measure(
                float(np.exp(ratio.value)), ratio.n, (float(np.exp(low)), float(np.exp(high)))
            ),
        )


def measure_damage(
    reference: Scorer,
    models: dict[str, Scorer],
    text: str,
    *,
    chunk_tokens: int = 512,
    chunks: int | None = None,
    confidence: float = 0.95,
) -> list[Damage]:
    """Return what each model makes of the text; one chunk's logits are in memory at a time.

    Args:
        chunks: the most chunks that are read.

    Raises:
        DataError: if the text is shorter than a chunk.
        BadInputError: if a model splits the text otherwise than the reference.
    """
    ids = reference.ids(text)
    for name, model in models.items():
        if model.ids(text) != ids:
            raise BadInputError(
                f"{name}: splits the text into other tokens than the reference; "
                "compare files that were made from this model"
            )
    begun = ids[:1] == [reference.prefix]
    pieces = list(_chunks(ids, chunk_tokens))[:chunks]
    if not pieces:
        raise DataError(
            f"the text has {len(ids)} tokens and a chunk {chunk_tokens}; give a longer --text"
        )
    tallies = {name: _Tally([], [], [], []) for name in models}
    first = chunk_tokens // 2
    with bar("reading the text", len(pieces)) as advance:
        for piece in pieces:
            read = [reference.prefix, *piece[1:]] if begun else piece
            followed = np.array(piece[first + 1 :])
            theirs = _log_probs(reference, read, first)
            for name, model in models.items():
                ours = _log_probs(model, read, first)
                if ours.shape != theirs.shape:
                    raise BadInputError(
                        f"{name}: knows {ours.shape[1]} tokens, the reference {theirs.shape[1]}; "
                        "compare files that were made from this model"
                    )
                tallies[name].add(ours, theirs, followed)
            advance()
    return [tally.damage(name, confidence) for name, tally in tallies.items()]


def _chunks(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    for begin in range(0, len(ids) - size + 1, size):
        yield list(ids[begin : begin + size])


def _log_probs(model: Scorer, ids: list[int], first: int) -> np.ndarray:
    """(tokens, vocabulary) float64 behind the tokens from `first` on, but the last."""
    return log_softmax(model.logits(ids, first)[:-1].astype(np.float64), axis=1)


Judge = Callable[[Sequence[str], Callable[[int], None]], Sequence[Decision]]
"""Decides about prompts; calls its second argument with the number of those just done."""


@dataclass(frozen=True)
class DecisionDamage:
    """How often a model decides as the reference does, and the share of unsafe prompts that it
    allows; None where there is no unsafe prompt."""

    name: str
    agreement: Measure
    miss_rate: Measure | None


def decision_damage(
    judges: Mapping[str, Judge],
    prompts: Sequence[str],
    truth: Sequence[Decision],
    *,
    confidence: float = 0.95,
) -> list[DecisionDamage]:
    """Return what each judge makes of the prompts; the first is the reference."""
    unsafe = np.isin(np.array(truth), [int(decision) for decision in UNSAFE])
    measured: list[DecisionDamage] = []
    expected = np.zeros(0)
    for name, judge in judges.items():
        with bar(f"deciding, {Path(name).name}", len(prompts)) as advance:
            decided = np.array(judge(prompts, advance))
        expected = expected if measured else decided
        missed = (decided == Decision.ALLOW)[unsafe]
        agreement = Measure.of((decided == expected).tolist(), confidence)
        miss_rate = Measure.of(missed.tolist(), confidence) if len(missed) else None
        measured.append(DecisionDamage(name, agreement, miss_rate))
    return measured

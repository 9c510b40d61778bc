"""A linear probe at both ends: the decision head starts from what the frozen base already knows,
and is fitted once more to what training made of it."""

from __future__ import annotations

import base64
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from aegis.config import TrainSettings
from aegis.errors import ModelError
from aegis.model.adapted import Adapted
from aegis.model.device import Autocast, autocast
from aegis.model.prompt import by_length
from aegis.model.token_head import TokenHead
from aegis.protocol.decisions import NAMES
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew
from aegis.train.examples import Example, collate, epoch_batches, prompts_of, to_device

_WHOLE = 96  # examples that show what stands elsewhere than at a prompt's end
_LED = 192  # prompts that show what stands behind a decision
_MARGIN = 8.0  # nats of the decisions above the likeliest other token
_STRENGTH = 0.003  # inverse regularisation of the probe: few records, many dimensions


@torch.no_grad()
def probe(
    adapted: Adapted,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    pad_id: int,
    seed: int,
    remember: Remember = compute_anew,
) -> float | None:
    """Fit the head to `settings.probe_records` prompts; return its accuracy on them.

    A head that starts at random first has to be found while LoRA moves the features under it; one
    that starts from a probe keeps more of what the base knows about text that training never saw.

    Args:
        remember: gives the batches that were read before, as base64 of float32.

    Returns:
        None if nothing was done: no records asked for, or fewer than two decisions among them.

    Source:
        Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform
        Out-of-Distribution, 2022 (LP-FT).
    """
    chosen = random.Random(f"probe:{seed}").sample(
        list(examples), min(settings.probe_records, len(examples))
    )
    named = {"pad_id": pad_id, "name": "probe", "remember": remember}
    return _settled(adapted, _fit(adapted, chosen, settings, **named), examples, settings, pad_id)


@torch.no_grad()
def refit(
    adapted: Adapted,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    pad_id: int,
    remember: Remember = compute_anew,
    spoken: Sequence[Example] = (),
) -> float | None:
    """Fit the head anew to the prompts of all `examples`, with everything else as trained.

    Reading a prompt costs a quarter of a training step on it, and the fit has one optimum: many
    more records count, and none is forgotten for those that came last. Otherwise as `probe`. Rows
    that stand in the embedding, too, are left as they are: what was trained reads them.

    Args:
        spoken: examples with responses, of whose places decisions keep off.

    Source:
        Kirichenko et al., Last Layer Re-Training is Sufficient for Robustness to Spurious
        Correlations, 2023.
    """
    if adapted.rows and adapted.rows.shared:
        return None
    named = {"pad_id": pad_id, "name": "refit", "remember": remember}
    fitted = _fit(adapted, examples, settings, **named)
    return _settled(adapted, fitted, spoken or examples, settings, pad_id)


def _fit(
    adapted: Adapted,
    examples: Sequence[Example],
    settings: TrainSettings,
    *,
    pad_id: int,
    name: str,
    remember: Remember,
) -> tuple[Tensor, float] | None:
    """Fit the head to the examples' prompts; `name` is what the batches are remembered by.

    Returns:
        The (n, width) states that it was fitted to, and its accuracy on them.
    """
    if len({example.decision for example in examples}) < 2:
        return None
    prompts = prompts_of(examples)
    pooled, labels = [], []
    adapted.eval()
    with bar("fitting the decision head", len(prompts)) as advance:
        plan = epoch_batches(prompts, batch_tokens=2 * settings.batch_tokens, seed=0, epoch=0)
        for number, indices in enumerate(plan):
            batch = [prompts[i] for i in indices]
            read = partial(_pooled, adapted, batch, settings.autocast, pad_id=pad_id)
            data = bytearray(base64.b64decode(remember(f"{name} {number}", read)))
            states = torch.frombuffer(data, dtype=torch.float32).view(len(batch), -1)
            pooled.append(states.to(adapted.device))
            labels += [example.decision for example in batch]
            advance(len(indices))
    states = torch.cat(pooled)
    if not states.isfinite().all():
        raise ModelError(
            "the base computes NaN or infinity: a weight of it is damaged; download the base again"
        )
    adapted.head.set_scale(states)
    standardised = ((states - adapted.head.mean) / adapted.head.scale).cpu().numpy()
    fitted = LogisticRegression(C=_STRENGTH, max_iter=1000).fit(standardised, labels)
    _copy(adapted, fitted)
    return states, float(fitted.score(standardised, labels))


def _pooled(adapted: Adapted, batch: list[Example], cast: Autocast, *, pad_id: int) -> str:
    """Return the (batch, width) float32 states that the head reads, in base64."""
    given = to_device(collate(batch, pad_id=pad_id), adapted.device)
    with autocast(cast, adapted.device):
        hidden = adapted.hidden(given.ids, given.mask)
    states = adapted.head.pooled(hidden, given.prompt_mask)
    return base64.b64encode(states.cpu().numpy().tobytes()).decode()


def _settled(
    adapted: Adapted,
    fitted: tuple[Tensor, float] | None,
    examples: Sequence[Example],
    settings: TrainSettings,
    pad_id: int,
) -> float | None:
    """Put what was fitted into the weights if it belongs there: at a prompt's end the decisions are
    the likeliest tokens, in its midst and in answers they are none. Return the accuracy."""
    if fitted is None or not isinstance(adapted.head, TokenHead):
        return fitted and fitted[1]
    head, (states, accuracy) = adapted.head, fitted
    others, behind = _elsewhere(adapted, examples, settings, pad_id, head.ids)
    weight = adapted.base.get_output_embeddings().weight
    words = adapted.logits(states[:_WHOLE].to(weight.dtype)).float()
    words[:, list(head.ids)] = -torch.inf
    level = float(words.amax(-1).mean()) + _MARGIN
    head.settle(adapted.base, states, others, behind, level=level)
    return accuracy


def _elsewhere(
    adapted: Adapted,
    examples: Sequence[Example],
    settings: TrainSettings,
    pad_id: int,
    decisions: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Return the states of places in prompts and responses that no decision follows, and those
    right behind a decision's token."""
    drawn = random.Random("settle")
    whole = [example for example in examples if example.weights] or list(examples)
    led = prompts_of(drawn.sample(list(examples), min(_LED, len(examples))))
    rows = drawn.sample(whole, min(_WHOLE, len(whole)))
    count = len(rows)
    rows += [replace(e, ids=(*e.ids, decisions[e.decision]), weights=(0.0,)) for e in led]
    others, behind = list[Tensor](), list[Tensor]()
    with bar("settling the decisions", len(rows)) as advance:
        lengths = [len(each.ids) for each in rows]
        for indices in by_length(lengths, batch_tokens=settings.batch_tokens):
            batch = to_device(collate([rows[i] for i in indices], pad_id=pad_id), adapted.device)
            with autocast(settings.autocast, adapted.device):
                hidden = adapted.hidden(batch.ids, batch.mask).float()
            for index, states in zip(indices, hidden, strict=True):
                begin, end = rows[index].prompt_length, lengths[index]
                if index >= count:
                    behind.append(states[begin:end])
                else:
                    others += [states[: begin - 1], states[begin:end]]
            advance(len(indices))
    return torch.cat(others), torch.cat(behind)


def _copy(adapted: Adapted, fitted: LogisticRegression) -> None:
    """Put the probe's coefficients into the head; an unseen class keeps zeros and a low bias."""
    linear = adapted.head.linear
    weight, bias = torch.zeros(len(NAMES), linear.in_features), torch.full((len(NAMES),), -5.0)
    coefficients, intercepts = torch.tensor(fitted.coef_), torch.tensor(fitted.intercept_)
    if len(fitted.classes_) == 2:  # sklearn keeps one row for two classes
        coefficients = torch.cat([-coefficients, coefficients]) / 2
        intercepts = torch.cat([-intercepts, intercepts]) / 2
    for row, label in enumerate(fitted.classes_):
        weight[label], bias[label] = coefficients[row].float(), intercepts[row].float()
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)

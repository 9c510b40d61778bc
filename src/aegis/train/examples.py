"""From records to token ids: what SFT reads, and in which order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from aegis.data.records import Pair, Record
from aegis.model.prompt import PromptEncoder, by_length, end_ids, pad
from aegis.model.tags import known_tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import SECTIONS, VERDICT_SECTION, Thinking


@dataclass(frozen=True)
class Example:
    """One record as ids. The decision is read at the prompt's end; `weights` says what each target
    token counts.

    Args:
        ids: prompt, then (for thinking records) the response and its end token.
        prompt_length: how many of the ids are the prompt.
        decision: class id.
        weights: one loss weight for each id after the prompt.
    """

    ids: tuple[int, ...]
    prompt_length: int
    decision: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """Padded on the right. ids, mask, prompt_mask: (batch, time); decisions: (batch,); weights:
    (batch, time).

    `weights[:, t]` is the weight of predicting `ids[:, t]`; 0 on prompts and padding.
    """

    ids: Tensor
    mask: Tensor
    prompt_mask: Tensor
    decisions: Tensor
    weights: Tensor


def places_of(mask: Tensor) -> tuple[Tensor, ...]:
    """Return the indices, one tensor an axis, of where the mask is true.

    Of a mask without content, on the meta device, that is everywhere: the most that it can be.
    """
    if mask.is_meta:
        return tuple(mask.new_empty(mask.numel(), dtype=torch.long) for _ in mask.shape)
    return mask.nonzero(as_tuple=True)


def encode(
    tokenizer: Any,
    prompt: str,
    decision: int,
    thinking: Thinking | None,
    *,
    system: str | None,
    section_weight: float,
    final_weight: float,
) -> Example:
    """Tokenize one record; private sections and the public answer carry their own weights."""
    ids = PromptEncoder(tokenizer, system).ids(prompt)
    if thinking is None:
        return Example(tuple(ids), len(ids), decision, ())
    response, weights = response_ids(
        tokenizer,
        thinking,
        Decision(decision),
        section_weight=section_weight,
        final_weight=final_weight,
    )
    return Example((*ids, *response), len(ids), decision, weights)


def response_ids(
    tokenizer: Any,
    thinking: Thinking,
    decision: Decision,
    *,
    section_weight: float,
    final_weight: float,
    end: bool = True,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """A whole response as ids with its tags, and the loss weight of each.

    Args:
        decision: what was decided about the prompt, told at the beginning of the policy section.
        end: with the end token behind the last tag. A sampled response ends with the tag.
    """
    bodies = [*(text.reveal() for text in thinking.bodies().values()), thinking.public]
    ids: list[int] = []
    weights: list[float] = []
    for number, ((opening, closing), body) in enumerate(
        zip(known_tags(tokenizer).pairs, bodies, strict=True)
    ):
        told = verdict_ids(tokenizer, decision) if number == VERDICT_SECTION else ()
        part = [opening, *told, *tokenizer(body, add_special_tokens=False)["input_ids"], closing]
        public = number == len(SECTIONS)
        part += end_ids(tokenizer) if public and end else []
        ids += part
        weights += [final_weight if public else section_weight] * len(part)
    return tuple(ids), tuple(weights)


def encode_pair(
    tokenizer: Any, pair: Pair, *, system: str | None, end: bool = True
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """How many ids the prompt has, and the chosen and the rejected side as ids, the prompt before
    each.

    Both are told what is right: what was decided is no merit of a response.

    Args:
        end: as in `response_ids`.
    """
    prompt = PromptEncoder(tokenizer, system).ids(pair.prompt)
    given: dict[str, Any] = {"section_weight": 0, "final_weight": 0, "end": end}
    chosen, rejected = (
        (*prompt, *response_ids(tokenizer, side.thinking, pair.chosen.decision, **given)[0])
        for side in (pair.chosen, pair.rejected)
    )
    return len(prompt), chosen, rejected


def encode_all(
    tokenizer: Any,
    records: Sequence[Record],
    pairs: Sequence[Pair],
    *,
    system: str | None,
    section_weight: float,
    final_weight: float,
    max_length: int,
    thinking_records: int | None,
    seed: int,
    thinking_tokens: int | None = None,
) -> tuple[list[Example], int]:
    """Return the examples and how many records were too long to use.

    Args:
        pairs: their chosen sides are used as records.
        max_length: longer thinking records fall back to their prompt; longer prompts are left out.
        thinking_records: how many keep their thinking (chosen by seed), None for all; the rest
            teach the decision only.
        thinking_tokens: only responses of at most so many tokens are among them, None for all.
    """
    rows = [(record.prompt, int(record.decision), record.thinking) for record in records]
    rows += [(pair.prompt, int(pair.chosen.decision), pair.chosen.thinking) for pair in pairs]
    shared: dict[str, Any] = {
        "system": system,
        "section_weight": section_weight,
        "final_weight": final_weight,
    }
    thought = (
        {}
        if thinking_records == 0
        else {number: row for number, row in enumerate(rows) if row[2] is not None}
    )
    whole = {number: encode(tokenizer, *row, **shared) for number, row in thought.items()}
    limit = thinking_tokens or max_length
    usable = [
        number
        for number, one in whole.items()
        if len(one.ids) <= max_length and len(one.weights) <= limit
    ]
    if thinking_records is not None:
        usable = random.Random(f"thinking:{seed}").sample(
            usable, min(thinking_records, len(usable))
        )
    chosen = set(usable)
    examples = [
        whole[number] if number in chosen else encode(tokenizer, prompt, decision, None, **shared)
        for number, (prompt, decision, _) in enumerate(rows)
    ]
    examples = [example for example in examples if len(example.ids) <= max_length]
    return examples, len(rows) - len(examples)


def mixed(shares: Sequence[tuple[int, float]], *, seed: int, epoch: int) -> list[int]:
    """Indices of the examples that an epoch takes: round(weight · n) of each dataset, which ones a
    function of (seed, epoch).

    Args:
        shares: (n, weight) of each dataset, in the order in which their examples stand. A weight
            over 1 repeats every example as often as it goes, and draws the rest without repetition.
    """
    chosen: list[int] = []
    start = 0
    for number, (count, weight) in enumerate(shares):
        whole, rest = divmod(round(weight * count), max(1, count))
        indices = range(start, start + count)
        chosen += [*indices] * whole + sorted(
            random.Random(f"mixture:{seed}:{epoch}:{number}").sample(indices, rest)
        )
        start += count
    return chosen


def epoch_batches(
    examples: Sequence[Example],
    *,
    batch_tokens: int,
    seed: int,
    epoch: int,
    chosen: Sequence[int] | None = None,
) -> list[list[int]]:
    """The epoch's batches of example indices: like lengths together, composition and order a
    function of (seed, epoch).

    Args:
        chosen: the indices to take, repeats included; None for every example once.
    """
    rng = random.Random(f"order:{seed}:{epoch}")
    taken = range(len(examples)) if chosen is None else chosen
    # Jitter before sorting by length: neighbours differ from epoch to epoch, padding stays small.
    lengths = [max(1, round(len(examples[index].ids) * rng.uniform(0.9, 1.1))) for index in taken]
    order = list(range(len(taken)))
    rng.shuffle(order)
    by_token = by_length([lengths[i] for i in order], batch_tokens=batch_tokens)
    batches = [[taken[order[i]] for i in batch] for batch in by_token]
    rng.shuffle(batches)
    return batches


def mixed_order(kinds: Sequence[int], *, seed: int, epoch: int) -> list[int]:
    """The epoch's order of items, a function of (seed, epoch): every stretch holds each kind in its
    share of the whole.

    An update that by chance asks of one kind alone would teach to treat all alike.

    Args:
        kinds: of every item.
    """
    rng = random.Random(f"prompts:{seed}:{epoch}")
    order = list(range(len(kinds)))
    rng.shuffle(order)
    count, met = Counter(kinds), {kind: rng.random() for kind in sorted(set(kinds))}
    places: dict[int, float] = {}
    for index in order:
        places[index] = met[kinds[index]] / count[kinds[index]]
        met[kinds[index]] += 1
    return sorted(order, key=places.__getitem__)


def prompt_plan(kinds: Sequence[int], *, updates: int, asked: int, seed: int) -> list[list[int]]:
    """Which `asked` prompts each update asks: the epochs' orders, each a function of (seed, epoch),
    one after another.

    Args:
        kinds: of every prompt; at least one.
    """
    wanted = updates * asked
    places: list[int] = []
    for epoch in range(-(-wanted // len(kinds))):
        places += mixed_order(kinds, seed=seed, epoch=epoch)
    return [places[start : start + asked] for start in range(0, wanted, asked)]


def collate(examples: Sequence[Example], *, pad_id: int) -> Batch:
    """Pad examples into one batch."""
    ids, mask = pad([list(example.ids) for example in examples], value=pad_id)
    weights = torch.zeros(ids.shape)
    prompt_mask = torch.zeros_like(mask)
    for row, example in enumerate(examples):
        prompt_mask[row, : example.prompt_length] = 1
        weights[row, example.prompt_length : len(example.ids)] = torch.tensor(example.weights)
    decisions = torch.tensor([example.decision for example in examples])
    return Batch(ids, mask, prompt_mask, decisions, weights)


def prompts_of(examples: Sequence[Example]) -> list[Example]:
    """The same examples without their responses: what the decision is read from."""
    return [Example(e.ids[: e.prompt_length], e.prompt_length, e.decision, ()) for e in examples]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch where the model is."""
    fields = (batch.ids, batch.mask, batch.prompt_mask, batch.decisions, batch.weights)
    return Batch(*(tensor.to(device) for tensor in fields))

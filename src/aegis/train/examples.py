"""From records to token ids: what SFT reads, and in which order."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from aegis.config import Config
from aegis.data.records import Pair, Record
from aegis.model.prompt import PromptEncoder, by_length, end_ids, pad
from aegis.model.tags import known_tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import SECTIONS, VERDICT_SECTION, Thinking


@dataclass(frozen=True)
class Targets:
    """What the base would say next, at each place of a stretch of an example.

    Args:
        start: index of the first id that is a target.
        words: (n, k) the most probable tokens at each place, int64.
        log_chances: (n, k) their log probabilities.
    """

    start: int
    words: Tensor
    log_chances: Tensor


@dataclass(frozen=True)
class Example:
    """One record as ids. The decision is read at the prompt's end; `weights` says what each target
    token counts.

    Args:
        ids: prompt, then (for thinking records) the response and its end token.
        prompt_length: how many of the ids are the prompt.
        decision: class id.
        weights: one loss weight for each id after the prompt.
        targets: the base's own chances, in place of the ids there; None without.
    """

    ids: tuple[int, ...]
    prompt_length: int
    decision: int
    weights: tuple[float, ...]
    targets: Targets | None = None


@dataclass(frozen=True)
class EncodingSettings:
    """How records become examples.

    Args:
        max_length: longer thinking records fall back to their prompt; longer prompts are left out.
        section_weight: of each token of the private sections; `final_weight` of the public answer.
        decision_records: how many of the others are taken (chosen by seed), None for all;
            `decision_tokens`: only prompts of at most so many tokens are among them.
        thinking_records: how many keep their thinking (chosen by seed), None for all; the rest
            teach the decision only.
        thinking_tokens: only responses of at most so many tokens are among them, None for all.
        opens: whether the model learns to open its thinking; not where plain chat is taught, too.
    """

    system: str | None
    max_length: int
    seed: int
    section_weight: float = 1.0
    final_weight: float = 1.0
    decision_records: int | None = None
    decision_tokens: int | None = None
    thinking_records: int | None = None
    thinking_tokens: int | None = None
    opens: bool = True

    @classmethod
    def of(cls, config: Config) -> EncodingSettings:
        train = config.train
        return cls(
            config.model.system_prompt,
            train.max_length,
            config.seed,
            train.loss.sections,
            train.loss.final,
            train.decision_records,
            train.decision_tokens,
            train.thinking_records,
            train.thinking_tokens,
            opens=not train.distillation.prompts,
        )


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right. ids, mask, prompt_mask, weights, taught: (batch, time);
    decisions: (batch,).

    `weights[:, t]` is the weight of predicting `ids[:, t]`; 0 on prompts and padding. Where
    `taught` is true the base's chances are the target: `words` and `log_chances`, (places, k), in
    the order of its true places.
    """

    ids: Tensor
    mask: Tensor
    prompt_mask: Tensor
    decisions: Tensor
    weights: Tensor
    taught: Tensor
    words: Tensor
    log_chances: Tensor


def response_ids(
    tokenizer: Any,
    thinking: Thinking,
    decision: Decision,
    *,
    section_weight: float = 1.0,
    final_weight: float = 1.0,
    end: bool = True,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return a whole response as ids with its tags, and the loss weight of each.

    Where the decision is a token it stands first, and what opens the thinking has no weight: the
    engine writes that, and in plain chat the answer follows.

    Args:
        decision: about the prompt; stands at the beginning of the policy section, too.
        end: with the end token behind the last tag. A sampled response ends with the tag.
    """
    bodies = [*(text.reveal() for text in thinking.bodies().values()), thinking.public]
    tags = known_tags(tokenizer)
    ids = [*tags.lead(decision)]
    weights = [section_weight] * len(ids)
    for number, ((opening, closing), body) in enumerate(zip(tags.pairs, bodies, strict=True)):
        verdict = verdict_ids(tokenizer, decision) if number == VERDICT_SECTION else ()
        part = [opening, *verdict, *tokenizer(body, add_special_tokens=False)["input_ids"], closing]
        public = number == len(SECTIONS)
        part += end_ids(tokenizer) if public and end else []
        ids += part
        weights += [final_weight if public else section_weight] * len(part)
    if tags.decisions:
        return tuple(ids), unopened(tokenizer, decision, tuple(weights))
    return tuple(ids), tuple(weights)


def encode_all(
    tokenizer: Any, records: Sequence[Record], pairs: Sequence[Pair], settings: EncodingSettings
) -> tuple[list[Example], int]:
    """Return the examples and how many records were too long to use.

    Args:
        pairs: their chosen sides are used as records.
    """
    rows = [(record.prompt, record.decision, record.thinking) for record in records]
    rows += [(pair.prompt, pair.chosen.decision, pair.chosen.thinking) for pair in pairs]
    encoder = PromptEncoder(tokenizer, settings.system)
    examples = [_encode(encoder, *row, settings) for row in rows]
    longest, limit = settings.max_length, settings.thinking_tokens or settings.max_length
    usable = [
        number
        for number, example in enumerate(examples)
        if example.weights and len(example.ids) <= longest and len(example.weights) <= limit
    ]
    if settings.thinking_records is not None:
        count = min(settings.thinking_records, len(usable))
        usable = random.Random(f"thinking:{settings.seed}").sample(usable, count)
    chosen, prompts = set(usable), prompts_of(examples)
    fitting = [number for number, prompt in enumerate(prompts) if len(prompt.ids) <= longest]
    most = settings.decision_tokens or longest
    deciding = [
        number for number in fitting if number not in chosen and len(prompts[number].ids) <= most
    ]
    if settings.decision_records is not None:
        count = min(settings.decision_records, len(deciding))
        deciding = sorted(random.Random(f"deciding:{settings.seed}").sample(deciding, count))
    deciding = set(deciding)
    taken = [number for number in fitting if number in chosen or number in deciding]
    kept = [examples[number] if number in chosen else prompts[number] for number in taken]
    return kept, len(rows) - len(fitting)


def _encode(
    encoder: PromptEncoder,
    prompt: str,
    decision: Decision,
    thinking: Thinking | None,
    settings: EncodingSettings,
) -> Example:
    ids = encoder.ids(prompt)
    if thinking is None or settings.thinking_records == 0:
        return Example(tuple(ids), len(ids), int(decision), ())
    response, weights = response_ids(
        encoder.tokenizer,
        thinking,
        decision,
        section_weight=settings.section_weight,
        final_weight=settings.final_weight,
    )
    if not settings.opens:
        weights = unopened(encoder.tokenizer, decision, weights)
    return Example((*ids, *response), len(ids), int(decision), weights)


def unopened(tokenizer: Any, decision: Decision, weights: tuple[float, ...]) -> tuple[float, ...]:
    """Return the weights of a response without that of what opens its thinking: the engine writes
    that, and in plain chat the answer comes at once."""
    place = len(known_tags(tokenizer).lead(decision))
    return (*weights[:place], 0.0, *weights[place + 1 :])


def mixed(shares: Sequence[tuple[int, float]], *, seed: int, epoch: int) -> list[int]:
    """Return the indices of an epoch's examples: round(weight · n) of each dataset.

    Which ones is a function of (seed, epoch).

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
    """Return the epoch's batches of example indices, like lengths together.

    Composition and order are a function of (seed, epoch).

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
    """Return the epoch's order of items, a function of (seed, epoch).

    Every stretch holds each kind in its share of the whole: an update that by chance asks of one
    kind alone would teach to treat all alike.

    Args:
        kinds: of every item.
    """
    rng = random.Random(f"prompts:{seed}:{epoch}")
    order = list(range(len(kinds)))
    rng.shuffle(order)
    count, rank = Counter(kinds), {kind: rng.random() for kind in sorted(set(kinds))}
    places: dict[int, float] = {}
    for index in order:
        places[index] = rank[kinds[index]] / count[kinds[index]]
        rank[kinds[index]] += 1
    return sorted(order, key=places.__getitem__)


def prompt_plan(kinds: Sequence[int], *, updates: int, asked: int, seed: int) -> list[list[int]]:
    """Return the `asked` prompts of each update, taken from one epoch's order after another.

    Args:
        kinds: of every prompt; at least one.
    """
    total = updates * asked
    order: list[int] = []
    for epoch in range(math.ceil(total / len(kinds))):
        order += mixed_order(kinds, seed=seed, epoch=epoch)
    return [order[start : start + asked] for start in range(0, total, asked)]


def collate(examples: Sequence[Example], *, pad_id: int) -> Batch:
    """Pad examples into one batch."""
    ids, mask = pad([list(example.ids) for example in examples], value=pad_id)
    weights = torch.zeros(ids.shape)
    prompt_mask = torch.zeros_like(mask)
    for row, example in enumerate(examples):
        prompt_mask[row, : example.prompt_length] = 1
        weights[row, example.prompt_length : len(example.ids)] = torch.tensor(example.weights)
    taught = torch.zeros(ids.shape, dtype=torch.bool)
    targets = [(row, example.targets) for row, example in enumerate(examples) if example.targets]
    for row, target in targets:
        taught[row, target.start : target.start + len(target.words)] = True
    nothing = torch.zeros(0, 1)
    words = torch.cat([target.words for _, target in targets] or [nothing.long()])
    log_chances = torch.cat([target.log_chances for _, target in targets] or [nothing])
    decisions = torch.tensor([example.decision for example in examples])
    return Batch(ids, mask, prompt_mask, decisions, weights, taught, words, log_chances)


def prompts_of(examples: Sequence[Example]) -> list[Example]:
    """Return the examples without their responses: what the decision is read from."""
    return [Example(e.ids[: e.prompt_length], e.prompt_length, e.decision, ()) for e in examples]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the batch to where the model is."""
    return Batch(*(getattr(batch, field.name).to(device) for field in fields(batch)))

"""SFT's pull towards the base: where a prompt is allowed, say what the base says without AEGIS.

Source:
    Askell et al., A General Language Assistant as a Laboratory for Alignment, 2021 (context
    distillation); Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from aegis.data.records import Record
from aegis.model.prompt import PromptEncoder, end_ids
from aegis.model.tags import known_tags
from aegis.protocol.decisions import Decision
from aegis.protocol.fixed_texts import fixed_text
from aegis.protocol.thinking import PrivateText, Thinking, looks_like_a_tag
from aegis.train.examples import EncodingSettings, Example, Targets, response_ids, unopened
from aegis.train.teacher import BaseAnswer

_BRIEF = {
    "en": ("Answer what is asked.", "Nobody is harmed.", "Harmless.", "Answer it directly."),
    "ja": ("聞かれたことに答える。", "誰にも害はない。", "無害な質問。", "そのまま答える。"),
}


def distilled(
    encoder: PromptEncoder,
    answers: Sequence[BaseAnswer],
    records: Sequence[Record],
    settings: EncodingSettings,
    *,
    weight: float,
    thinking: float,
) -> list[Example]:
    """Return an example an answer: a share of them behind thinking, the rest in plain chat.

    A prompt whose record has no thinking of its own gets a brief one, with the record's rationale
    where it has one: what a small model thinks at length is often beside the point, and its answer
    follows that instead of the prompt.

    Args:
        weight: of each token of an answer.
        thinking: the share.
    """
    by_prompt = {record.prompt: record for record in records if record.decision is Decision.ALLOW}
    order = sorted(answers, key=lambda answer: _nothing_thought(by_prompt[answer.prompt]))
    behind = round(thinking * len(order))
    return [
        _example(
            encoder,
            answer,
            _thinking(by_prompt[answer.prompt]) if place < behind else None,
            replace(settings, final_weight=weight),
        )
        for place, answer in enumerate(order)
    ]


def plainly_answered(
    encoder: PromptEncoder, records: Sequence[Record], settings: EncodingSettings, *, most: int
) -> list[Example]:
    """Return examples in plain chat, a decision's token and what is said behind it, of at most so
    many records, chosen by seed: the record's own answer where it is allowed, else the decision's
    fixed text, as it is served."""
    tags, end = known_tags(encoder.tokenizer), end_ids(encoder.tokenizer)
    longest = settings.thinking_tokens or settings.max_length
    order, examples = list(records), list[Example]()
    random.Random(f"plain:{settings.seed}").shuffle(order)
    for record in order:
        if record.decision is not Decision.ALLOW:
            text = fixed_text(record.decision, record.language)
        elif record.thinking:
            text = record.thinking.public
        else:
            continue
        prompt, lead = encoder.ids(record.prompt), tags.lead(record.decision)
        said = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = (*prompt, *lead, *said, *end)
        weights = (settings.section_weight,) * len(lead)
        weights += (settings.final_weight,) * (len(said) + len(end))
        if len(ids) <= settings.max_length and len(weights) <= longest:
            examples.append(Example(ids, len(prompt), int(record.decision), weights))
        if len(examples) == most:
            break
    return examples


def _nothing_thought(record: Record) -> bool:
    return record.thinking is None and record.rationale is None


def _thinking(record: Record) -> Thinking:
    """Return a record's thinking, a brief one where it has none."""
    if record.thinking:
        return record.thinking
    *bodies, plan = _BRIEF["ja" if record.language == "ja" else "en"]
    if record.rationale and not looks_like_a_tag(record.rationale):
        bodies[-1] = record.rationale
    return Thinking(*map(PrivateText, (*bodies, plan)), public="…")


def _example(
    encoder: PromptEncoder,
    answer: BaseAnswer,
    thinking: Thinking | None,
    settings: EncodingSettings,
) -> Example:
    """Put the base's answer behind the prompt, and behind the thinking if there is any."""
    tokenizer = encoder.tokenizer
    prompt, allow, end = encoder.ids(answer.prompt), Decision.ALLOW, end_ids(tokenizer)
    ended = answer.ids[-1:] == tuple(end)
    said = list(answer.ids[:-1] if ended else answer.ids)
    before, after, taught = list(known_tags(tokenizer).lead(allow)), end, len(answer.ids)
    weights = (settings.section_weight,) * len(before)
    if thinking:
        opening, closing = known_tags(tokenizer).pairs[-1]
        written, weights = response_ids(
            tokenizer, thinking, allow, section_weight=settings.section_weight
        )
        before, after = list(written[: written.index(opening) + 1]), [closing, *end]
        weights = unopened(tokenizer, allow, weights[: len(before)])
        taught = len(said)  # its end is a tag, which the base does not know
    ids = (*prompt, *before, *said, *(after if ended else ()))
    start = len(prompt) + len(before)
    weights = (*weights, *[settings.final_weight] * (len(ids) - start))
    targets = Targets(start, answer.words[:taught].long(), answer.log_chances[:taught].float())
    return Example(ids, len(prompt), int(allow), weights, targets)

"""From a user's words to token ids, in the base's own chat format."""

from __future__ import annotations

from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor

from aegis.errors import DataError


def prompt_ids(tokenizer: Any, prompt: str, *, system: str | None) -> list[int]:
    """Token ids up to where the model starts to answer: those of `prompt_text`."""
    text, bare = prompt_text(tokenizer, prompt, system=system)
    return tokenizer(text, add_special_tokens=bare)["input_ids"]


def prompt_text(tokenizer: Any, prompt: str, *, system: str | None) -> tuple[str, bool]:
    """The text that the model reads, and whether the tokenizer has still to add what a text begins
    with.

    Uses the tokenizer's chat template; without one, a plain two-part form. A template that knows no
    system role (Gemma) gets the system text in front of the prompt. What looks like one of the
    tokenizer's own markers inside the prompt is spelled out, so that a user's words can never open
    a turn or close a section.
    """
    prompt = _plain(tokenizer, prompt)
    if not getattr(tokenizer, "chat_template", None):
        text = f"{system}\n\n" if system else ""
        return f"{text}### User:\n{prompt}\n\n### Assistant:\n", True
    user = {"role": "user", "content": prompt}
    if system is None:
        return _templated(tokenizer, [user]), False
    try:
        return _templated(tokenizer, [{"role": "system", "content": system}, user]), False
    except TemplateError:
        return _templated(tokenizer, [{"role": "user", "content": f"{system}\n\n{prompt}"}]), False


def _plain(tokenizer: Any, text: str) -> str:
    """The text with a space after the first character of every marker (`<final>` → `< final>`)."""
    for marker in tokenizer.get_added_vocab():
        if len(marker) > 1 and marker in text and not marker.isspace():
            text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


def end_ids(tokenizer: Any) -> list[int]:
    """What closes a response."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def require_fit(ids: list[int], *, limit: int, where: str) -> None:
    """The ids fit the model's context.

    Raises:
        DataError: if they do not; a judge that reads only part of a request can be fooled by the
            rest.
    """
    if len(ids) > limit:
        raise DataError(
            f"{where}: the prompt has {len(ids)} tokens and the model reads {limit}; shorten it"
        )


def pad(rows: list[list[int]], *, value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """(batch, time) ids and mask, both int64; rows are padded on the right unless `left`."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids, mask


def by_length(lengths: list[int], *, batch_tokens: int) -> list[list[int]]:
    """Indices dealt into batches of like length, each at most `batch_tokens` when padded (a longer
    row goes alone)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _templated(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

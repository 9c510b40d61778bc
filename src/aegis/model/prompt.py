"""From a user's words to token ids, in the base's own chat format."""

from __future__ import annotations

import functools
import itertools
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from aegis.errors import DataError

# What a base without a chat template of its own is asked in.
PLAIN_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}
{%- elif message['role'] == 'user' %}{{ '### User:\\n' + message['content'] + '\\n\\n' }}
{%- else %}{{ '### Assistant:\\n' + message['content'] + eos_token + '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"""


@dataclass(frozen=True)
class PromptEncoder:
    """How a model reads a user's words. Many threads may encode at once.

    Args:
        tokenizer: the model's.
        system: the system text; None for none.
        max_length: tokens that the model reads; None for any number.
    """

    tokenizer: Any
    system: str | None = None
    max_length: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def text(self, prompt: str) -> tuple[str, bool]:
        """Return the text that the model reads, and whether the tokenizer has still to add what a
        text begins with.

        Uses the tokenizer's chat template; without one, a plain two-part form. A template that
        knows no system role (Gemma) gets the system text in front of the prompt. What looks like
        one of the tokenizer's own markers inside the prompt is spelled out, so that a user's words
        can never open a turn or close a section.
        """
        prompt, system = self._without_markers(prompt), self.system
        if not getattr(self.tokenizer, "chat_template", None):
            text = f"{system}\n\n" if system else ""
            return f"{text}### User:\n{prompt}\n\n### Assistant:\n", True
        if system is None:
            return self._templated(user=prompt), False
        try:
            return self._templated(system=system, user=prompt), False
        except TemplateError:
            return self._templated(user=f"{system}\n\n{prompt}"), False

    def ids(self, prompt: str) -> list[int]:
        """Return the token ids up to where the model starts to answer."""
        with self._lock:
            text, bare = self.text(prompt)
            return self._begun(text) if bare else self._plain(text)

    def fitting_ids(self, prompt: str, *, room: int = 0, where: str = "prompt") -> list[int]:
        """Return the ids of a prompt that leaves `room` tokens for the response.

        Raises:
            DataError: if it does not; a judge that reads only part of a request can be fooled by
                the rest. `where` opens the message.
        """
        ids = self.ids(prompt)
        require_fit(ids, limit=(self.max_length or 1 << 30) - room, where=where)
        return ids

    def continuation_ids(
        self, context: str, choices: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Split context + choice, for each choice, into the ids that all begin with, and the rest.

        Both are read as they stand, markers included. Where a choice's first characters merge with
        the context's last, all choices are scored from before that token on. Without a context the
        tokenizer's first (or end) token stands for it.

        Raises:
            DataError: if one is longer than the model reads.
        """
        texts = [context, *(context + choice for choice in choices)]
        with self._lock:
            rows = [self._begun(text) for text in texts]
        shared = common_prefix(rows)
        if not shared:  # nothing to predict the first token from
            first = self.tokenizer.bos_token_id
            shared = [self.tokenizer.eos_token_id if first is None else first]
            rows = [shared + row for row in rows]
        for row in rows:
            require_fit(row, limit=self.max_length or 1 << 30, where="context and choice")
        return shared, [row[len(shared) :] for row in rows[1:]]

    def spelled_in_bytes(self, prompts: Sequence[str]) -> np.ndarray:
        """(n,) bool: the tokenizer needs more tokens than the prompt has characters."""
        with self._lock:
            rows = [self._plain(text) for text in prompts]
        return np.array([len(row) > len(text) for row, text in zip(rows, prompts, strict=True)])

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _begun(self, text: str) -> list[int]:
        """Return the ids of a text with what the tokenizer puts before it, and nothing behind."""
        plain, whole = self._plain(text), list(self.tokenizer(text)["input_ids"])
        ends = range(len(whole), len(plain) - 1, -1)
        end = next((end for end in ends if whole[end - len(plain) : end] == plain), len(whole))
        return whole[:end]

    @functools.cached_property
    def _markers(self) -> tuple[re.Pattern[str], frozenset[str], list[int]]:
        """What markers begin with, the markers, and their lengths: looked up once, for to list the
        added tokens takes as long as there are words."""
        added = self.tokenizer.get_added_vocab()
        markers = frozenset(text for text in added if len(text) > 1 and not text.isspace())
        first = "".join(sorted({re.escape(text[0]) for text in markers}))
        return re.compile(f"[{first}]" if first else "(?!)"), markers, sorted({*map(len, markers)})

    def _without_markers(self, text: str) -> str:
        """Put a space after the first character of every marker (`<final>` → `< final>`)."""
        beginnings, markers, lengths = self._markers

        def broken(match: re.Match[str]) -> str:
            start = match.start()
            opens = any(text[start : start + length] in markers for length in lengths)
            return f"{match[0]} " if opens else match[0]

        while (changed := beginnings.sub(broken, text)) != text:
            text = changed
        return text

    def _templated(self, **turns: str) -> str:
        messages = [{"role": role, "content": text} for role, text in turns.items()]
        return self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )


def set_default_system(tokenizer: Any, system: str) -> None:
    """Have the chat template apply the system text where no system turn is given, in front of the
    first message where the template knows no such turn: as `PromptEncoder` does it."""
    turn = f"[{{'role': 'system', 'content': {json.dumps(system, ensure_ascii=False)}}}]"
    added = (
        "{%- if messages and messages[0]['role'] != 'system' %}"
        f"{{%- set messages = {turn} + messages %}}{{%- endif %}}"
    )
    try:
        PromptEncoder(tokenizer, system)._templated(system=system, user="x")
    except TemplateError:
        added += (
            "{%- if messages[0]['role'] == 'system' and messages | length > 1 %}"
            "{%- set messages = [{'role': messages[1]['role'], 'content': messages[0]['content']"
            " + '\\n\\n' + messages[1]['content']}] + messages[2:] %}{%- endif %}"
        )
    tokenizer.chat_template = added + tokenizer.chat_template


def disable_word_cache(tokenizer: Any) -> None:
    """Make the tokenizer keep nothing of what it reads.

    tokenizers remembers the pieces of up to 10,000 words in every thread that reads, which is 4 MB
    a thread once as many were met, and each request's canary is a new word. Without that memory a
    prompt takes as long (docs/experiments.md).
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    resize = getattr(model, "_resize_cache", None)  # not every kind of model has such a memory
    if resize:
        resize(0)


def common_prefix(rows: Sequence[Sequence[int]]) -> list[int]:
    """Return the ids that all rows begin with."""
    alike = itertools.takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False))
    return [ids[0] for ids in alike]


def end_ids(tokenizer: Any) -> list[int]:
    """Return what closes a response."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def require_fit(ids: list[int], *, limit: int, where: str) -> None:
    """Check that the ids fit the model's context.

    Raises:
        DataError: if they do not; a judge that reads only part of a request can be fooled by the
            rest.
    """
    if len(ids) > limit:
        raise DataError(
            f"{where}: the prompt has {len(ids)} tokens and the model reads {limit}; shorten it"
        )


def pad(rows: list[list[int]], *, value: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Return (batch, time) ids and mask, int64, padded on the right unless `left`."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row, dtype=torch.long)
        mask[index, place] = 1
    return ids, mask


def by_length(lengths: list[int], *, batch_tokens: int) -> list[list[int]]:
    """Deal indices into batches of like length, each at most `batch_tokens` when padded (a longer
    row goes alone)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches

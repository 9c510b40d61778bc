"""Ask models plain questions, a batch at a time: in a model's own chat, and as AEGIS answers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aegis.engine.answer import Answer, likeliest_answers
from aegis.engine.generate import most_probable
from aegis.engine.local_thinker import LocalThinker
from aegis.evaluate.answers import ANSWERED, WITHHELD, Question, Reply
from aegis.model.base import ModelFolder
from aegis.model.device import fast_dtype, pick_device, release_memory
from aegis.protocol.decisions import Decision
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew

Ask = Callable[[Sequence[str]], list[Reply]]
_TOKENS, _AT_ONCE = 64, 20


def load_chat(source: ModelFolder, *, base: bool = True) -> Ask:
    """Load a model that is asked in plain chat: no system text of ours, no protocol.

    Args:
        base: behind examples, where it has no chat of its own.
    """
    loaded: Any = source.load_model(dtype=fast_dtype())
    model, tokenizer = loaded.to(pick_device()), source.load_tokenizer()
    ask = functools.partial(most_probable, model, tokenizer, max_new_tokens=_TOKENS, base=base)
    return lambda prompts: list(map(Reply, ask(prompts)))


def load_answering(folder: Path, *, trust_remote_code: bool = False) -> Ask:
    """Load a model folder that decides, thinks and answers, as it is served."""
    thinker = LocalThinker.load(folder, trust_remote_code=trust_remote_code)
    return lambda prompts: list(map(_reply, likeliest_answers(thinker, prompts)))


def replies(
    questions: Sequence[Question],
    load: Callable[[], Ask],
    *,
    label: str = "answering",
    remember: Remember = compute_anew,
) -> list[Reply]:
    """Return the reply to each question.

    Args:
        load: called before the first batch that `remember` has to compute.
        remember: gives the batches that were answered before.
    """
    ask, given = functools.cache(load), list[Reply]()

    def rows(prompts: list[str]) -> list[dict[str, str]]:
        return [asdict(reply) for reply in ask()(prompts)]

    with bar(label, len(questions)) as advance:
        for start in range(0, len(questions), _AT_ONCE):
            prompts = [each.question for each in questions[start : start + _AT_ONCE]]
            batch = remember(f"{label} {start}", functools.partial(rows, prompts))
            given += [Reply(**row) for row in batch]
            advance(len(prompts))
    release_memory()
    return given


def _reply(answer: Answer) -> Reply:
    if answer.decision is not Decision.ALLOW:
        return Reply(answer.final, answer.decision.name)
    return Reply(answer.final, ANSWERED if answer.own else WITHHELD)

"""What the base itself answers to harmless prompts, word by word, for the trained model to keep."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from aegis.config import DistillationSettings
from aegis.data.personal import mask_personal_data
from aegis.data.records import Record, read_rows, write_jsonl
from aegis.model.base import Base
from aegis.model.device import fast_dtype, pick_device
from aegis.model.own_chat import OwnChat
from aegis.model.prompt import by_length, pad
from aegis.protocol.decisions import Decision
from aegis.protocol.stance import stance
from aegis.runs.reporter import bar
from aegis.storage.journal import Remember, compute_anew

_ANSWERS, _CHANCES = "answers.jsonl", "chances.safetensors"
_BATCH_TOKENS = 8192  # a step of writing costs much the same for ten answers and for fifty
_MARKS = " .。!！?？\n"
_QUESTION_MARKS = ("?", "？")
_NEVER = -60.0  # a log probability


@dataclass(frozen=True)
class BaseAnswer:
    """The base's most probable answer to a prompt, in its own chat.

    Args:
        ids: tokens, the end token among them where the base ended.
        words: (tokens, k) the most probable tokens at each place, int32.
        log_chances: (tokens, k) their log probabilities, float16.
    """

    prompt: str
    ids: tuple[int, ...]
    words: Tensor
    log_chances: Tensor


def ask_base(
    base: Base,
    records: Sequence[Record],
    settings: DistillationSettings,
    *,
    seed: int,
    remember: Remember = compute_anew,
) -> tuple[Any, list[BaseAnswer]]:
    """Return the base's tokenizer, and its usable answers to harmless prompts of the records.

    Args:
        remember: gives the batches that were answered before.
    """
    chat, answers = OwnChat(base.load_tokenizer()), list[BaseAnswer]()
    asked = harmless(records, chat, settings, seed=seed)
    # Loaded for the first batch that is not remembered.
    model = cache(lambda: cast(Any, base.load_model(dtype=fast_dtype())).to(pick_device()))
    rows = list(map(chat.ids, asked))
    with bar("asking the base", len(asked)) as advance:
        plan = by_length([len(row) + settings.tokens for row in rows], batch_tokens=_BATCH_TOKENS)
        for number, indices in enumerate(plan):
            ask = partial(_ask, model, chat, [rows[i] for i in indices], settings)
            given = remember(f"teacher {number}", ask)
            answers += map(_unpacked, [asked[i] for i in indices], given)
            advance(len(indices))
    return chat.tokenizer, [each for each in answers if _worth_keeping(chat, each)]


def save_answers(folder: Path, tokenizer: Any, answers: Sequence[BaseAnswer]) -> None:
    """Write the answers for people, and their probabilities beside."""
    rows = [
        {"prompt": answer.prompt, "answer": _text(tokenizer, answer), "ids": list(answer.ids)}
        for answer in answers
    ]
    write_jsonl(folder / _ANSWERS, rows)
    if answers:
        words = torch.cat([answer.words for answer in answers])
        log_chances = torch.cat([answer.log_chances for answer in answers])
        save_file({"words": words, "log_chances": log_chances}, folder / _CHANCES)


def read_answers(folder: Path) -> list[BaseAnswer]:
    """Read what `save_answers` wrote."""
    rows = read_rows(folder / _ANSWERS)
    if not rows:
        return []
    chances = load_file(folder / _CHANCES)
    sizes = [len(row["ids"]) for row in rows]
    words, logs = chances["words"].split(sizes), chances["log_chances"].split(sizes)
    return [
        BaseAnswer(row["prompt"], tuple(row["ids"]), *both)
        for row, *both in zip(rows, words, logs, strict=True)
    ]


def harmless(
    records: Sequence[Record], chat: OwnChat, settings: DistillationSettings, *, seed: int
) -> list[str]:
    """Choose the prompts that the base is asked: allowed ones that its tokenizer reads in words and
    that leave room for an answer, those with thinking of their own first, the rest by seed. A base
    that answers behind examples is asked questions first: it knows no other form."""
    allowed = [record for record in records if record.decision is Decision.ALLOW]
    random.Random(f"teacher:{seed}").shuffle(allowed)
    if chat.by_examples:
        allowed.sort(key=lambda record: not record.prompt.endswith(_QUESTION_MARKS))
    else:
        allowed.sort(key=lambda record: record.thinking is None)
    encoder = chat.encoder
    spelled = encoder.spelled_in_bytes([record.prompt for record in allowed])
    prompts = (
        record.prompt
        for record, in_bytes in zip(allowed, spelled, strict=True)
        if not in_bytes and len(encoder.ids(record.prompt)) <= settings.prompt_tokens
    )
    return list(dict.fromkeys(prompts))[: settings.prompts]


class _Watch(LogitsProcessor):
    """Keep the most probable tokens of every step, and change nothing."""

    def __init__(self, top: int) -> None:
        self.top, self.seen = top, list[tuple[Tensor, Tensor]]()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        logs, words = torch.log_softmax(scores.float(), -1).topk(min(self.top, scores.shape[-1]))
        self.seen.append((words.int().cpu(), logs.half().cpu()))
        return scores


@torch.inference_mode()
def _ask(
    load: Callable[[], Any], chat: OwnChat, rows: list[list[int]], settings: DistillationSettings
) -> list[dict[str, Any]]:
    """Return a batch's answers as JSON values."""
    tokenizer, model = chat.tokenizer, load()
    ids, mask = pad(rows, value=tokenizer.pad_token_id, left=True)
    watch = _Watch(settings.top)
    written = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=settings.tokens,
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        logits_processor=LogitsProcessorList([watch]),
        **chat.stopping(),
    )[:, ids.shape[1] :].tolist()
    answers = []
    for place, row in enumerate(written):
        end = tokenizer.eos_token_id
        count = row.index(end) + 1 if end in row else len(row)
        length = chat.length(row[:count])
        count = count if length is None else length + 1
        words, logs = (
            torch.stack([step[side][place] for step in watch.seen[:count]]) for side in (0, 1)
        )
        if length is not None:  # what ends the answer in its own form ends it here by this token
            row[length] = words[-1, 0] = end
            logs[-1, 0], logs[-1, 1:] = 0, _NEVER
        packed = {"words": _pack(words), "log_chances": _pack(logs), "top": words.shape[1]}
        answers.append({"ids": row[:count], **packed})
    return answers


def _pack(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _unpacked(prompt: str, given: dict[str, Any]) -> BaseAnswer:
    top = given["top"]
    words, logs = (
        torch.frombuffer(bytearray(base64.b64decode(given[name])), dtype=dtype).view(-1, top)
        for name, dtype in (("words", torch.int32), ("log_chances", torch.float16))
    )
    return BaseAnswer(prompt, tuple(given["ids"]), words, logs)


def _text(tokenizer: Any, answer: BaseAnswer) -> str:
    return tokenizer.decode(answer.ids, skip_special_tokens=True).strip()


def _worth_keeping(chat: OwnChat, answer: BaseAnswer) -> bool:
    """Whether it answers, neither repeats the prompt nor asks back, and names nobody's address.

    What a base without a chat has not ended after so many tokens repeats itself.
    """
    text = _text(chat.tokenizer, answer)
    if chat.by_examples and answer.ids[-1] != chat.tokenizer.eos_token_id:
        return False
    asks = text.endswith(_QUESTION_MARKS) or text.strip(_MARKS) == answer.prompt.strip(_MARKS)
    return bool(text) and not asks and stance(text) == "answer" and not mask_personal_data(text)[1]

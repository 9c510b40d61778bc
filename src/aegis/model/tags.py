"""The protocol's tags, and the decisions where a model writes them, as tokens of their own, with
trainable rows of embedding and lm_head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional

from aegis.errors import AdapterError
from aegis.protocol.decisions import TOKENS, Decision
from aegis.protocol.thinking import TAGS, verdict_line

TAGS_FILE = "tags.safetensors"


@dataclass(frozen=True)
class Tags:
    """Token ids (opening, closing) of each private section in order, then of the public answer;
    ids of the four decisions, none where a head beside the model decides."""

    pairs: tuple[tuple[int, int], ...]
    decisions: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them, in the order of `TAGS` and of the decisions."""
        return (*(tag_id for pair in self.pairs for tag_id in pair), *self.decisions)

    def lead(self, decision: Decision) -> tuple[int, ...]:
        """Return what a response begins with, before its first tag."""
        return self.decisions[decision : decision + 1]


def add_tags(tokenizer: Any, model: Any, *, decisions: bool = False) -> Tags:
    """Give every tag a token and a row of the embedding and of lm_head, and with `decisions` every
    decision.

    An opening tag starts as the mean of the pieces it was spelled with before. A closing tag starts
    as a line break, which every base already writes where a thought is over: it would take
    thousands of examples to learn that from elsewhere. So does ALLOW: read again, what chat forms
    end with changes the answer least. The other decisions start as their pieces, for what follows
    them is to be another text. Always the same for the same base, so that an adapter only needs to
    keep what training adds to the rows.
    """
    texts = [*TAGS, *(TOKENS if decisions else ())]
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"][-1:]
    # Not `special`: runtimes hide special tokens, and a reader could not tell thinking from answer.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    if decisions:  # these are to be hidden: whoever reads probabilities sees them
        tokens = [AddedToken(text, special=True, normalized=False) for text in TOKENS]
        tokenizer.add_tokens(tokens, special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids(texts)
    rows, needed = model.get_input_embeddings().weight.shape[0], max(len(tokenizer), max(ids) + 1)
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for table in [embedding] if head is embedding else [embedding, head]:
            if needed > rows:  # a token without a row of its own: the same row every time
                table[rows:] = table[:rows].float().mean(0).to(table.dtype)
            for text, tag_id, spelled in zip(texts, ids, pieces, strict=True):
                if spelled != [tag_id]:  # a base that knows the tags already keeps its rows
                    broken = text.startswith("</") or text == TOKENS[Decision.ALLOW]
                    like = (line_break or spelled) if broken else spelled
                    table[tag_id] = table[like].float().mean(0).to(table.dtype)
    return known_tags(tokenizer)


def known_tags(tokenizer: Any) -> Tags:
    """Return the tags of a tokenizer that has them.

    Raises:
        AdapterError: if it has not.
    """
    ids = tokenizer.convert_tokens_to_ids(list(TAGS))
    if any(tag_id in (None, tokenizer.unk_token_id) for tag_id in ids):
        raise AdapterError(
            "the tokenizer does not know the thinking tags; give a model that `aegis run` made"
        )
    decisions = tokenizer.convert_tokens_to_ids(list(TOKENS))
    known = not any(token in (None, tokenizer.unk_token_id) for token in decisions)
    return Tags(tuple(zip(ids[::2], ids[1::2], strict=True)), tuple(decisions) if known else ())


def end_at_tags(model: Any, tokenizer: Any) -> None:
    """Have `generate` end an answer at any tag: behind a decision in plain chat there is none that
    belongs to it. What the model's own settings end at stays an end."""
    config = model.generation_config
    ends = config.eos_token_id if config.eos_token_id is not None else tokenizer.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    tags = (tag_id for pair in known_tags(tokenizer).pairs for tag_id in pair)
    config.eos_token_id = list(dict.fromkeys([*ends, *tags]))


def verdict_ids(tokenizer: Any, decision: Decision) -> tuple[int, ...]:
    """Return the ids of the line that the policy section begins with."""
    return tuple(tokenizer(verdict_line(decision), add_special_tokens=False)["input_ids"])


class TagRows(nn.Module):
    """What training adds to the tags' rows, one table where the base ties embedding and lm_head.

    Args:
        ids: token ids of the tags.
        width: hidden size d.
        vocabulary: number of rows of the embedding.
        tied: the base uses one table for both.
    """

    ids: Tensor
    slots: Tensor

    def __init__(self, ids: Sequence[int], *, width: int, vocabulary: int, tied: bool) -> None:
        super().__init__()
        self.tied, self.shared = tied, False
        self.decisions: Callable[[], Tensor] | None = None
        self.input = nn.Parameter(torch.zeros(len(ids), width))
        self.output = self.input if tied else nn.Parameter(torch.zeros(len(ids), width))
        slots = torch.zeros(vocabulary, dtype=torch.long)
        slots[torch.tensor(ids)] = torch.arange(1, len(ids) + 1)
        self.register_buffer("ids", torch.tensor(ids), persistent=False)
        self.register_buffer("slots", slots, persistent=False)

    @classmethod
    def of(cls, model: Any, tags: Tags) -> TagRows:
        """Return fresh rows for a model with tags."""
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        vocabulary, width = embedding.shape
        return cls(tags.ids, width=width, vocabulary=vocabulary, tied=head is embedding)

    def follow(self, decisions: Callable[[], Tensor], *, shared: bool) -> None:
        """Take what is added to the decisions' rows of lm_head, which are the last, from there.

        Args:
            shared: embedding and lm_head stay one table, so that it is added to both.
        """
        self.decisions, self.shared = decisions, shared

    def tables(self) -> tuple[Tensor, Tensor]:
        """Return the (tokens, d) that are added to rows of the embedding and of lm_head."""
        if self.decisions is None:
            return self.input, self.output
        rows = self.decisions()
        inputs = torch.cat([self.input[: -len(rows)], rows]) if self.shared else self.input
        return inputs, torch.cat([self.output[: -len(rows)], rows])

    def hook(self, model: Any) -> None:
        """Add the rows to what the model's embedding and lm_head give."""
        model.get_input_embeddings().register_forward_hook(self._embed())
        model.get_output_embeddings().register_forward_hook(self._predict())

    @torch.no_grad()
    def fold(self, model: Any) -> None:
        """Write the rows into the tables, before lm_head's gate turns what they read."""
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        inputs, outputs = self.tables()
        tables = [(embedding, inputs)]
        if head is not embedding:
            tables.append((head, outputs))
        for table, rows in tables:
            table[self.ids] = (table[self.ids].double() + rows.double()).to(table.dtype)

    def save(self, folder: Path) -> None:
        """Write the rows into the folder."""
        rows = {"input": self.input} | ({} if self.tied else {"output": self.output})
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in rows.items()}
        save_file(tensors, folder / TAGS_FILE)

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote.

        Raises:
            AdapterError: if it does not fit.
        """
        try:
            self.load_state_dict(load_file(folder / TAGS_FILE), strict=not self.tied)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise AdapterError(
                f"{folder / TAGS_FILE}: does not fit the base; train the adapter again"
            ) from error

    def _embed(self) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            slots = self.slots[inputs[0]]
            # A batch without tags needs no gradient below the lowest adapted layer.
            if not slots.any():
                return output
            # Slot 0 stands for every other token: nothing to add.
            table = functional.pad(self.tables()[0], (0, 0, 1, 0))
            scale = getattr(module, "embed_scale", 1.0)  # Gemma multiplies what its embedding gives
            return output + (functional.embedding(slots, table) * scale).to(output.dtype)

        return hook

    def _predict(self) -> Callable[..., Tensor]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            extra = inputs[0] @ self.tables()[1].to(inputs[0].dtype).T
            # In place: a copy would be the vocabulary's size.
            return output.index_add_(-1, self.ids, extra.to(output.dtype))

        return hook

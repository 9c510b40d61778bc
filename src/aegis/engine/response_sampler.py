"""Sample responses in the protocol's form with transformers: the engine writes the tags, the model
the bodies, so the form cannot break."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from aegis.engine.response_grammar import (
    Limits,
    PartialResponse,
    ResponseGrammar,
    SampledResponse,
    Sampling,
)
from aegis.model.prompt import pad
from aegis.model.tags import Tags
from aegis.protocol.decisions import Decision


@dataclass(frozen=True)
class ResponseRequest:
    """One response to sample among others: the prompt's ids, and what was decided about it."""

    prompt: tuple[int, ...]
    decision: Decision
    sampling: Sampling


class ResponseSampler(ResponseGrammar):
    """Samples responses, a batch at a time, each row at its own place in the protocol.

    Args:
        model: a transformers causal language model, adapted or folded.
        tokenizer: its tokenizer, with the tags.
        tags: their ids.
        limits: of what `__call__` samples.
    """

    def __init__(self, model: Any, tokenizer: Any, tags: Tags, limits: Limits = Limits()) -> None:  # noqa: B008 - frozen
        super().__init__(tokenizer, tags)
        self.model, self.limits = model, limits
        self.allowed = allowed_tokens(
            tokenizer, width=model.get_output_embeddings().weight.shape[0]
        ).to(model.device)

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        decisions: Sequence[Decision],
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        on_token: Callable[[], None] = lambda: None,
    ) -> list[SampledResponse]:
        """Sample one response a prompt, in their order, all from one generator.

        Args:
            decisions: what was decided about each prompt.
            temperature: 0 takes the most probable token.
            on_token: called after each step; it may raise to stop.
        """
        sampling = Sampling(self.limits, temperature)
        rows = [
            PartialResponse(
                tuple(prompt), sampling, self.verdicts[decision], lead=self.tags.lead(decision)
            )
            for prompt, decision in zip(prompts, decisions, strict=True)
        ]
        self._sample(rows, generator=generator, on_token=on_token)
        return [row.finish() for row in rows]

    @torch.inference_mode()
    def each(
        self,
        requests: Sequence[ResponseRequest],
        *,
        on_response: Callable[[int, SampledResponse], None],
        dropped: Callable[[int], bool] = lambda _: False,
        on_token: Callable[[], None] = lambda: None,
    ) -> None:
        """Sample responses that differ in limits, temperature and seed; each draws from a generator
        of its own and is handed over, with its request's index, as soon as it is whole.

        Args:
            dropped: asked between steps; a row for which it is true goes no further and is never
                handed over.
        """
        rows = [
            PartialResponse(
                tuple(request.prompt),
                request.sampling,
                self.verdicts[request.decision],
                random.Random(request.sampling.seed),
                self.tags.lead(request.decision),
            )
            for request in requests
        ]
        self._sample(
            rows,
            on_token=on_token,
            on_whole=lambda index: on_response(index, rows[index].finish()),
            dropped=dropped,
        )

    def _sample(
        self,
        rows: Sequence[PartialResponse],
        *,
        generator: torch.Generator | None = None,
        on_token: Callable[[], None],
        on_whole: Callable[[int], None] = lambda _: None,
        dropped: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Write the rows until every one is whole or dropped."""
        if not rows:
            return
        starts = [[*row.prompt, *self.begin(row)] for row in rows]
        ids, mask = pad(starts, value=self.tokenizer.pad_token_id, left=True)
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        active, cache = list(range(len(rows))), DynamicCache(config=self.model.config)
        while True:
            logits = self._logits(ids, mask, cache)
            chosen = self._choose(logits, [rows[index] for index in active], generator)
            tokens = [
                self.advance(rows[index], token)
                for index, token in zip(active, chosen, strict=True)
            ]
            for index in active:
                if rows[index].whole:
                    on_whole(index)
            keep = [
                place
                for place, index in enumerate(active)
                if tokens[place] is not None and not dropped(index)
            ]
            if not keep:
                return
            if len(keep) < len(active):
                active = [active[place] for place in keep]
                kept = torch.tensor(keep, device=mask.device)
                cache.batch_select_indices(kept)
                mask = mask[kept]
            ids = torch.tensor([[tokens[place]] for place in keep], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(keep), 1)], dim=1)
            on_token()

    def _logits(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def _choose(
        self, logits: Tensor, rows: Sequence[PartialResponse], generator: torch.Generator | None
    ) -> list[int | None]:
        """Choose a token a row; None where the engine writes the next one."""
        free = [not self.forced(row) for row in rows]
        if not any(free):
            return [None] * len(rows)
        closing = torch.tensor([self.tags.pairs[row.part][1] for row in rows], device=logits.device)
        may = torch.tensor([self.may_close(row) for row in rows], device=logits.device)
        masked = restrict(logits.to(torch.float32, copy=True), self.allowed, closing, may)
        picked = _pick(masked, rows, free, generator)
        return [
            token if is_free else None for token, is_free in zip(picked.tolist(), free, strict=True)
        ]


def _pick(
    logits: Tensor,
    rows: Sequence[PartialResponse],
    free: Sequence[bool],
    generator: torch.Generator | None,
) -> Tensor:
    """(n,) a token a row, at its own temperature, through the cumulated chances: one draw a row,
    where `torch.multinomial` makes one for every token of the vocabulary."""
    best = logits.argmax(-1)
    temperatures = torch.tensor([row.sampling.temperature for row in rows], device=logits.device)
    greedy = temperatures == 0
    if greedy.all():
        return best
    scaled = logits / torch.where(greedy, 1.0, temperatures)[:, None]
    chances = torch.softmax(scaled, -1)
    if any(row.sampling.top_p < 1 for row in rows):
        chances = _nucleus(chances, [row.sampling.top_p for row in rows])
    cumulated = chances.cumsum(-1)
    draws = torch.ones(len(rows))  # uniform in (0, 1], drawn on the CPU
    if rows[0].rng is None:
        draws -= torch.rand(len(rows), generator=generator)
    for place, row in enumerate(rows):  # only where it may choose: company must change no draw
        if row.rng and free[place]:
            draws[place] = 1 - row.rng.random()
    # The first place that reaches the draw has a chance of its own, so that what may not follow is
    # never drawn.
    reached = (draws.to(logits.device) * cumulated[:, -1])[:, None]
    return torch.where(greedy, best, torch.searchsorted(cumulated, reached).squeeze(1))


def _nucleus(chances: Tensor, top_p: Sequence[float]) -> Tensor:
    """Put 0 on (n, vocabulary) chances behind the most probable that come to `top_p` together.

    Source:
        Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.
    """
    most = torch.tensor(top_p, device=chances.device)[:, None]
    ordered, places = chances.sort(dim=-1, descending=True)
    behind = (ordered.cumsum(-1) - ordered >= most) & (most < 1)
    return chances.masked_fill(behind.scatter(-1, places, behind), 0.0)


def allowed_tokens(tokenizer: Any, *, width: int) -> Tensor:
    """(width,) bool: ordinary text tokens; no markers, and no rows that no token stands for."""
    allowed = torch.zeros(width, dtype=torch.bool)
    allowed[: len(tokenizer)] = True
    forbidden = [
        *tokenizer.all_special_ids,
        *(n for text, n in tokenizer.get_added_vocab().items() if text.strip()),
    ]
    allowed[[number for number in forbidden if number < width]] = False
    return allowed


def restrict(logits: Tensor, allowed: Tensor, closing: Tensor, may_close: Tensor) -> Tensor:
    """Put −inf on what may not follow into (n, vocabulary) logits, in place: they are the largest
    tensors there are.

    Args:
        allowed: (vocabulary,) from `allowed_tokens`.
        closing: (n,) each row's own closing tag.
        may_close: (n,) whether it may be chosen.
    """
    present = closing.unique()
    possible = allowed.clone()
    possible[present] = True
    logits.masked_fill_(~possible, -torch.inf)
    for tag in present.tolist():
        logits[:, tag].masked_fill_((closing != tag) | ~may_close, -torch.inf)
    return logits


@contextlib.contextmanager
def hold_gates(gates: Sequence[Any]) -> Iterator[None]:
    """Keep the gates' rotations as they are while entered, instead of computing them anew."""
    with contextlib.ExitStack() as stack:
        for gate in gates:
            stack.enter_context(gate.held())
        yield

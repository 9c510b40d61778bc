"""A transformers model that weighs continuations: one pass for all of an item's choices, logits
only where a token is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from aegis.engine.local_thinker import load_adapted
from aegis.engine.scoring import Row, RowBatch, Score, cut
from aegis.model.base import ModelFolder, context_length
from aegis.model.device import pick_device
from aegis.model.lm_head import vocabulary_logits
from aegis.model.prompt import pad

_LOGITS_AT_ONCE = 1 << 24  # numbers
_CLOSE = 1e-3  # how far a tree's log-probabilities may be from the sequences' own, in float32
_NO_WINDOW = 1 << 30


class TransformersScorer:
    """Reads an item's choices as a tree in one row, through an attention mask of its own.

    A model that cannot (a recurrent one, one whose positions come from the mask) reads a row for
    each choice; a tree of random tokens tells which. Each method is as in `Scorer`.

    Args:
        model: a transformers causal language model in evaluation mode.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.context = context_length(model.config)
        begin = tokenizer.bos_token_id
        self.prefix: int = tokenizer.eos_token_id if begin is None else begin
        self._begin = tokenizer.decode(self.prefix)
        text = model.config.get_text_config()
        windows = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
        self._window = min((size for size in windows if size), default=_NO_WINDOW)
        self._header: tuple[list[int], list[tuple[Tensor, Tensor]]] = ([], [])
        self.trees = self._reads_trees()

    @classmethod
    def load(cls, source: ModelFolder, dtype: torch.dtype) -> TransformersScorer:
        """Read a model folder.

        Raises:
            ModelError: if it cannot be loaded.
        """
        model: Any = source.load_model(dtype=dtype)
        return cls(model.to(pick_device()), source.load_tokenizer())

    @classmethod
    def load_adapter(
        cls, folder: Path, base_spec: str | None, dtype: torch.dtype
    ) -> TransformersScorer:
        """Read an adapter folder and its base; arguments as for `load_adapted`.

        Raises:
            ModelError: if either cannot be loaded.
        """
        adapted, tokenizer = load_adapted(folder, base_spec=base_spec, dtype=dtype)
        return cls(adapted.base, tokenizer)

    def ids(self, text: str, *, special: bool | None = None) -> list[int]:
        if special is None and text.startswith(self._begin):
            special = False
        options = {} if special is None else {"add_special_tokens": special}
        return self.tokenizer.encode(text, **options)

    @torch.inference_mode()
    def score(self, batch: RowBatch, rows: Sequence[Row]) -> list[list[Score]]:
        longest = max(int(row.positions().max()) + 1 for row in rows)
        if self.trees and longest <= self._window:
            return self._scores(self._tree_states(batch.header, rows), rows, len(batch.header))
        chains = [chain for row in rows for chain in row.chains()]
        scores = iter(self._scores(self._chain_states(chains), chains, 0))
        return [[next(scores)[0] for _ in row.targets] for row in rows]

    @torch.inference_mode()
    def write(self, prompts: Sequence[list[int]], stops: Sequence[str], most: int) -> list[str]:
        rows = [ids[-(self.context - most) :] for ids in prompts]
        ids, mask = pad(rows, value=self.tokenizer.pad_token_id, left=True)
        unused = dict.fromkeys(("temperature", "top_p", "top_k"))  # of the model's own settings
        output = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            pad_token_id=self.tokenizer.pad_token_id,
            max_new_tokens=most,
            do_sample=False,
            stop_strings=list(stops),
            tokenizer=self.tokenizer,
            **unused,
        )
        texts = self.tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        return [cut(text, stops) for text in texts]

    @torch.inference_mode()
    def logits(self, ids: list[int], first: int) -> np.ndarray:
        states = self._states(torch.tensor([ids], device=self.model.device))[0, first:]
        return vocabulary_logits(self.model, states).float().cpu().numpy()

    def close(self) -> None:
        """Do nothing: the model goes with its last reference."""

    def _tree_states(self, header: list[int], rows: Sequence[Row]) -> Tensor:
        """(rows, time, d) last hidden states behind the header."""
        skip, device = len(header), self.model.device
        ids, _ = pad([row.ids[skip:] for row in rows], value=self.tokenizer.pad_token_id)
        positions, segments = torch.zeros_like(ids), torch.full_like(ids, -1)
        for index, row in enumerate(rows):
            size = len(row.ids) - skip
            positions[index, :size] = torch.from_numpy(row.positions()[skip:])
            segments[index, :size] = torch.from_numpy(row.segments()[skip:])
        keys, queries = segments[:, None, :], segments[:, :, None]
        seen = ((keys == 0) | (keys == queries)).tril()
        if skip:
            seen = torch.cat([seen.new_ones(*seen.shape[:2], skip), seen], dim=2)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype)
        mask.masked_fill_(~seen, torch.finfo(self.model.dtype).min)
        cache = self._expanded(self._read_header(header), len(rows)) if skip else None
        return self._states(
            ids.to(device),
            attention_mask=mask[:, None].to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
        )

    def _chain_states(self, chains: Sequence[Row]) -> Tensor:
        ids, mask = pad([chain.trunk for chain in chains], value=self.tokenizer.pad_token_id)
        device = self.model.device
        return self._states(ids.to(device), attention_mask=mask.to(device))

    def _states(self, ids: Tensor, **options: Any) -> Tensor:
        decoder = self.model.get_decoder()
        return decoder(input_ids=ids, use_cache=False, **options).last_hidden_state

    def _read_header(self, header: list[int]) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values of the header; the last one read is kept."""
        if self._header[0] != header:
            cache = DynamicCache()
            ids = torch.tensor([header], device=self.model.device)
            self.model.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
            layers: list[Any] = cache.layers
            self._header = (header, [(layer.keys, layer.values) for layer in layers])
        return self._header[1]

    @staticmethod
    def _expanded(header: list[tuple[Tensor, Tensor]], rows: int) -> DynamicCache:
        """Return a cache that begins with the header in every row, without a copy of it."""
        cache = DynamicCache()
        for keys, values in header:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = (side.expand(rows, -1, -1, -1) for side in (keys, values))
            cache.layers.append(layer)
        return cache

    def _scores(self, states: Tensor, rows: Sequence[Row], skip: int) -> list[list[Score]]:
        flat = [(index, *target) for index, row in enumerate(rows) for target in _targets(row)]
        where, places, tokens = (torch.tensor(side) for side in zip(*flat, strict=True))
        device = states.device
        hidden = states[where.to(device), (places - skip).to(device)]
        log_probs, greedy = self._weigh(hidden, tokens.to(device))
        scores, at = [], 0
        for row in rows:
            scores.append([])
            for targets in row.targets:
                part = slice(at, at + len(targets))
                scores[-1].append(Score(float(log_probs[part].sum()), bool(greedy[part].all())))
                at += len(targets)
        return scores

    def _weigh(self, hidden: Tensor, tokens: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) log-probabilities of the tokens, and whether each is the most probable."""
        size = max(1, _LOGITS_AT_ONCE // self.model.config.get_text_config().vocab_size)
        log_probs, greedy = [], []
        for begin in range(0, len(tokens), size):
            part = tokens[begin : begin + size]
            logits = vocabulary_logits(self.model, hidden[begin : begin + size]).float()
            chosen = logits.gather(1, part[:, None])[:, 0]
            most = logits.amax(1)
            greedy.append(chosen == most)
            # In place: a second array of that size costs more time than the sum.
            total = logits.sub_(most[:, None]).exp_().sum(1).log()
            log_probs.append(chosen - most - total)
        return torch.cat(log_probs).double().cpu().numpy(), torch.cat(greedy).cpu().numpy()

    @torch.inference_mode()
    def _reads_trees(self) -> bool:
        """Return whether a tree behind a header gives what its sequences give one by one."""
        vocabulary = self.model.config.get_text_config().vocab_size
        draw = np.random.default_rng(0).integers(vocabulary, size=14).tolist()
        trunk, branches = draw[:8], [draw[8:11], draw[11:13]]
        row = Row(trunk, branches, [[(7, 1), (10, 1)], [(7, 1), (12, 1)]])
        far = _CLOSE if self.model.dtype == torch.float32 else 0.5
        try:
            trees = self._scores(self._tree_states(trunk[:4], [row, row]), [row, row], 4)[1]
            chains = self._scores(self._chain_states(row.chains()), row.chains(), 0)
        except Exception:  # each class has its own ways of refusing a mask, a position or a cache
            return False
        pairs = zip(trees, chains, strict=True)
        return all(abs(tree.log_prob - chain[0].log_prob) < far for tree, chain in pairs)


def _targets(row: Row) -> list[tuple[int, int]]:
    return [target for targets in row.targets for target in targets]

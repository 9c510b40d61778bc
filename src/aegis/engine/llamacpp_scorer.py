"""A GGUF file that weighs continuations: what rows share is read once and copied by reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp

from aegis.engine.llamacpp import GgufModel, InputToken
from aegis.engine.scoring import BATCH_TOKENS, Row, RowBatch, Score, cut

# Tokens a step: enough for the matrix products; attention looks at every cell that is taken.
_STEP = 512
_SEQUENCES = 64
_CONTEXT = 4096  # the most tokens of one sequence
_HEADER = 0  # the sequence that holds a batch's header
_Placed = tuple[int, int, int]
"""A token, its position and its sequence."""


class LlamaCppScorer:
    """Scores with llama.cpp in this process; each method is as in `Scorer`.

    Rows are read a step at a time, the trunks first and the branches then, always in the same
    order: on a quantised file the batch alone moves what comes out.

    Args:
        model: loaded; opened here, and closed with the scorer.
        threads: for the matrix products.
    """

    def __init__(self, model: GgufModel, *, threads: int) -> None:
        self.model, self.context = model, min(_CONTEXT, model.trained_context)
        begin = model.special_id("bos")
        self.prefix = model.special_id("eos") if begin < 0 else begin
        self._begin = model.spelling(self.prefix)
        self._header: list[int] = []
        self._cells = 2 * self.context + BATCH_TOKENS
        model.open(cells=self._cells, step=_STEP, threads=threads, sequences=_SEQUENCES)

    @classmethod
    def load(cls, file: Path) -> LlamaCppScorer:
        """Read a GGUF file.

        Raises:
            ModelError: if llama.cpp cannot load it.
            MissingPackageError: if cyllama is not installed.
        """
        model = GgufModel(file, gpu=True)
        try:
            return cls(model, threads=torch.get_num_threads())
        except BaseException:
            model.close()
            raise

    def ids(self, text: str, *, special: bool | None = None) -> list[int]:
        begun = text.startswith(self._begin)
        return self.model.tokens(text, special=not begun if special is None else special)

    def score(self, batch: RowBatch, rows: Sequence[Row]) -> list[list[Score]]:
        crowded = any(len(row.branches) + 1 >= _SEQUENCES for row in rows)
        if self.model.recurrent or crowded:  # a recurrent model's sequences cannot share a trunk
            self._header = []
            return [self._one_by_one(row) for row in rows]
        if self._header != batch.header:
            self.model.clear()
            self._read([(token, at, _HEADER) for at, token in enumerate(batch.header)], _Sums([]))
            self._header = batch.header
        scores: list[list[Score]] = []
        for part in _parts(rows, len(batch.header)):
            scores += self._scored(part, len(batch.header))
        return scores

    def write(self, prompts: Sequence[list[int]], stops: Sequence[str], most: int) -> list[str]:
        self.model.clear()
        self._header = []
        texts, waiting = [], [ids[-(self.context - most) :] for ids in prompts]
        while waiting:
            count, cells = 0, 0
            while count < min(len(waiting), _SEQUENCES) and (  # at least one
                not count or cells + len(waiting[count]) + most <= self._cells
            ):
                cells += len(waiting[count]) + most
                count += 1
            texts += self._written(waiting[:count], stops, most)
            waiting = waiting[count:]
        return texts

    def logits(self, ids: list[int], first: int) -> np.ndarray:
        self.model.clear()
        self._header = []
        rows = []
        for begin in range(0, len(ids), _STEP):
            part = list(enumerate(ids))[begin : begin + _STEP]
            self.model.read(InputToken(token, at, _HEADER, at >= first) for at, token in part)
            rows.append(self.model.logits(range(max(0, first - begin), len(part))))
        return np.concatenate(rows)

    def close(self) -> None:
        self.model.close()

    def _one_by_one(self, row: Row) -> list[Score]:
        scores = []
        for chain in row.chains():
            self.model.clear()
            scores.append(self._scored([chain], 0)[0][0])
        return scores

    def _scored(self, rows: Sequence[Row], skip: int) -> list[list[Score]]:
        """Score rows that have a sequence each, and one for each of their branches."""
        sums, begin = _Sums(rows), _HEADER + 1
        trunks, branches = [], []
        for index, row in enumerate(rows):
            if skip:
                self.model.share(_HEADER, begin, tokens=skip)
            tokens = zip(row.ids, row.positions().tolist(), row.segments().tolist(), strict=True)
            placed = [(token, at, begin + segment) for token, at, segment in tokens]
            trunks += placed[skip : len(row.trunk)]
            branches += placed[len(row.trunk) :]
            sums.expect(index, row, placed)
            begin += 1 + len(row.branches)
        self._read(trunks, sums)
        begin = _HEADER + 1
        for row in rows:
            for number, branch in enumerate(row.branches, 1):
                if branch:
                    self.model.share(begin, begin + number, tokens=len(row.trunk))
            begin += 1 + len(row.branches)
        self._read(branches, sums)
        for sequence in range(_HEADER + 1, begin):
            self.model.forget(sequence)
        return sums.scores

    def _read(self, tokens: Sequence[_Placed], sums: _Sums) -> None:
        """Read tokens a step at a time and note what they predict."""
        for begin in range(0, len(tokens), _STEP):
            part = tokens[begin : begin + _STEP]
            wanted = [(owner, at) in sums.expected for _, at, owner in part]
            steps = zip(part, wanted, strict=True)
            self.model.read(
                InputToken(id_, at, owner, output) for (id_, at, owner), output in steps
            )
            for index, (_, at, owner) in enumerate(part):
                if wanted[index]:
                    sums.note((owner, at), self.model.logits([index])[0])

    def _written(self, prompts: list[list[int]], stops: Sequence[str], most: int) -> list[str]:
        """Go on from prompts that fit the cells together."""
        model = self.model
        greedy = model.sampler([], temperature=0, top_p=1, seed=0)
        written: list[list[int]] = [[] for _ in prompts]
        texts = ["" for _ in prompts]
        ends: dict[int, int] = {}
        for sequence, ids in enumerate(prompts):
            for begin in range(0, len(ids), _STEP):
                piece = list(enumerate(ids))[begin : begin + _STEP]
                model.read(InputToken(t, at, sequence, at == len(ids) - 1) for at, t in piece)
            ends[sequence] = model.pick(greedy, (len(ids) - 1) % _STEP)
        while ends:
            for sequence, token in list(ends.items()):
                if not model.ends(token):
                    written[sequence].append(token)
                    texts[sequence] = model.text(written[sequence])
                stopped = any(stop and stop in texts[sequence] for stop in stops)
                if model.ends(token) or stopped or len(written[sequence]) == most:
                    del ends[sequence]
                    model.forget(sequence)
            at = {
                sequence: len(prompts[sequence]) + len(written[sequence]) - 1 for sequence in ends
            }
            if ends:
                model.read(InputToken(ends[one], at[one], one, True) for one in ends)
                ends = {one: model.pick(greedy, index) for index, one in enumerate(ends)}
        return [cut(text, stops) for text in texts]


class _Sums:
    """What is predicted behind which token of which sequence, and the sums of log-probabilities.

    Args:
        expected: by sequence and position, whose token is predicted there, and the token.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.scores = [[Score(0.0, True) for _ in row.targets] for row in rows]
        self.expected: dict[tuple[int, int], list[tuple[int, int, int]]] = {}

    def expect(self, index: int, row: Row, placed: Sequence[_Placed]) -> None:
        for choice, targets in enumerate(row.targets):
            for place, token in targets:
                _, at, owner = placed[place]
                self.expected.setdefault((owner, at), []).append((index, choice, token))

    def note(self, where: tuple[int, int], logits: np.ndarray) -> None:
        total: Any = logsumexp(logits.astype(np.float64))
        best = int(logits.argmax())
        for index, choice, token in self.expected[where]:
            before, value = self.scores[index][choice], float(logits[token] - total)
            greedy = before.greedy and token == best
            self.scores[index][choice] = Score(before.log_prob + value, greedy)


def _parts(rows: Sequence[Row], skip: int) -> Iterator[list[Row]]:
    """Yield rows that fit a step and the sequences that there are, or one that does not."""
    part: list[Row] = []
    tokens = sequences = 0
    for row in rows:
        size, needed = len(row.ids) - skip, 1 + len(row.branches)
        if part and (tokens + size > _STEP or sequences + needed >= _SEQUENCES):
            yield part
            part, tokens, sequences = [], 0, 0
        part.append(row)
        tokens, sequences = tokens + size, sequences + needed
    yield part

"""The decision in the weights: four tokens whose logits at the prompt's last position decide."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.errors import ModelError
from aegis.model.heads import DECISION_HEAD_FILE, DecisionHead, Pooling, pool
from aegis.model.lm_head import behind_gate, logits_of, vocabulary_logits
from aegis.model.tags import known_tags
from aegis.protocol.decisions import NAMES, TOKENS

METADATA_FILE = "metadata.json"
_ELSEWHERE = 0.05  # weight of the places at which no decision is written
_BEHIND = 0.05  # and of those behind one, which look much like a prompt's end
_RIDGE = 3e-3  # of the mean square of a dimension
_ROUNDS, _HARDER = 4, 10.0  # solutions; and how much more a place counts where one fails
_LOOKED_AT, _CLOSE = 512, 2.0  # places; nats below the likeliest word
_FEW = 0.05  # of the places: where more fail, all that holds them off would cost decisions


class TokenHead(DecisionHead):
    """Read the decision from four rows of lm_head; hold what training adds to them.

    That is `start`, which comes from a probe on the frozen base, and a part that trains, each input
    dimension in its own scale. Of a folded model both are nothing: its weights have them.

    Args:
        ids: token ids of the decisions.
    """

    file = "decision_rows.safetensors"
    start: Tensor

    def __init__(
        self,
        features: int,
        *,
        pooling: Pooling = "last",
        system_prompt: str | None = None,
        ids: Sequence[int] = range(len(NAMES)),
    ) -> None:
        super().__init__(features, pooling=pooling, system_prompt=system_prompt)
        self.ids = tuple(ids)
        self.linear.bias.requires_grad_(False)
        self.register_buffer("start", torch.zeros(len(NAMES), features))

    def rows(self) -> Tensor:
        """Return the (4, d) that are added to the decisions' rows of lm_head."""
        return self.start + self.linear.weight / self.scale

    def logits(self, model: Any, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the (batch, 4) logits of the decisions' tokens behind the prompts."""
        last = pool(hidden, mask, pooling="last")
        return logits_of(model, last, self.ids, added=self.rows())

    def folded(self) -> TokenHead:
        """Return what reads the decisions once the rows are in the weights."""
        return TokenHead(self.features, system_prompt=self.system_prompt, ids=self.ids)

    @torch.no_grad()
    def settle(
        self, model: Any, states: Tensor, others: Tensor, behind: Tensor, *, level: float
    ) -> None:
        """Turn the probe that was put into the head into rows, by least squares: on (n, d) prompts'
        last states they differ as the probe's logits do, and come to `level` together on average;
        on the (m, d) states of other places each is as probable as an average word, and so it is on
        the (k, d) states right behind a decision, where a plain chat goes on with the answer.

        Few places hold it against thousands, and where a decision is still among the likeliest
        tokens, it is solved once more with that place counting for more.

        There is no intercept among them. What stands for one is what all prompts' ends have in
        common and other places have not.
        """
        wanted = self.from_pooled(states)
        wanted = wanted - wanted.mean(-1, keepdim=True)
        wanted = wanted + level - wanted.logsumexp(-1).mean()
        table = model.get_output_embeddings().weight
        head, word = table[list(self.ids)].float(), table.mean(0, dtype=torch.float32)
        here = behind_gate(model, states).double()
        plain = here.float() @ head.T
        # A base may scale its logits, and an additive gate does; both as one factor.
        given = logits_of(model, states, self.ids, added=torch.zeros_like(head))
        factor = float((given * plain).sum() / (plain * plain).sum().clamp(min=1e-12))
        wanted = (wanted / factor - plain).double()
        away = [
            (places, behind_gate(model, places).double(), here.new_full((len(places), 1), weight))
            for places, weight in ((others, _ELSEWHERE), (behind, _BEHIND))
        ]
        seen = torch.cat([here, *(turned for _, turned, _ in away)])
        self.scale.copy_(seen.square().mean(0).sqrt() + 1e-3)
        for settled in (self.mean, self.linear.weight, self.linear.bias):
            settled.zero_()
        for turn in range(_ROUNDS):
            for places, _, weights in away if turn else ():
                intruding = self._intruding(model, places)
                if len(intruding) <= _FEW * len(places):
                    weights[intruding] *= _HARDER
            gram, aims = here.T @ here / len(here), here.T @ wanted / len(here)
            for _, turned, weights in away:
                held = (weights * turned).T / len(turned)
                gram += held @ turned
                aims += held @ (turned @ (word - head).double().T)
            gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
            self.start.copy_(torch.linalg.solve(gram, aims).T)

    def _intruding(self, model: Any, places: Tensor) -> Tensor:
        """Return the indices of those of the (n, d) places at which a decision is likelier than
        most other tokens, or nearly so; the likeliest of them are looked at."""
        decided = logits_of(model, places, self.ids, added=self.rows()).amax(-1)
        found = list[Tensor]()
        for part in decided.topk(min(_LOOKED_AT, len(places))).indices.split(128):
            words = vocabulary_logits(model, places[part].to(model.dtype)).float()
            words[:, list(self.ids)] = -torch.inf
            found.append(part[decided[part] > words.amax(-1) - _CLOSE])
        return torch.cat(found)


def folded_head(folder: Path, tokenizer: Any, *, width: int) -> DecisionHead | None:
    """Return what decides in a model folder: its head, its four tokens, or None.

    Raises:
        ModelError: if the head is unusable, or the tokens are missing.
    """
    if (folder / DECISION_HEAD_FILE).is_file():
        return DecisionHead.load(folder)
    facts = _decision_facts(folder)
    if facts is None:
        return None
    ids = known_tags(tokenizer).decisions
    if not ids:
        raise ModelError(
            f"{folder}: {METADATA_FILE} says that tokens decide, and the tokenizer lacks "
            f"{', '.join(TOKENS)}; fold the adapter again"
        )
    return TokenHead(width, system_prompt=facts.get("system_prompt"), ids=ids)


def system_prompt_beside(folder: Path) -> str | None:
    """Return the system text that a folder's prompts were trained with; None without one."""
    if (folder / DECISION_HEAD_FILE).is_file():
        return DecisionHead.load(folder).system_prompt
    return (_decision_facts(folder) or {}).get("system_prompt")


def read_metadata(model: Path) -> dict[str, Any]:
    """Return what `metadata.json` says; nothing where there is none."""
    try:
        return dict(json.loads((model / METADATA_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _decision_facts(folder: Path) -> dict[str, Any] | None:
    facts = read_metadata(folder).get("decision")
    return facts if isinstance(facts, dict) and facts.get("head") == "token" else None

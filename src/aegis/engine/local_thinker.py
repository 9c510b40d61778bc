"""Decide, think in private, answer: one call, from an adapter or from a folded model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from aegis.engine.answer import Answer, final_answer
from aegis.engine.judge import Judge
from aegis.engine.response_sampler import Limits, ResponseSampler, hold_gates, usable_thinking
from aegis.errors import ModelError
from aegis.model.adapter_folder import ADAPTER_CARD_FILE, load_adapter, read_card, require_base
from aegis.model.base import ModelFolder, resolve_base
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.heads import DECISION_HEAD_FILE, DecisionHead
from aegis.model.prompt import prompt_ids, require_fit
from aegis.model.tags import Tags, add_tags, known_tags


class LocalThinker:
    """A model with its decision head and its thinker.

    Args:
        model: a transformers causal language model, adapted or folded, that knows the tags.
        judge: decides from the prompt alone.
        gates: of an adapted model; they turn once and not at every token.
    """

    def __init__(
        self, model: Any, tokenizer: Any, tags: Tags, judge: Judge, gates: Sequence[Any] = ()
    ) -> None:
        self.model, self.tokenizer, self.tags, self.judge, self.gates = (
            model,
            tokenizer,
            tags,
            judge,
            gates,
        )

    @classmethod
    def load(cls, folder: Path, *, base_spec: str | None = None) -> LocalThinker:
        """Read an adapter folder (with its base) or a model folder.

        Args:
            base_spec: the adapter's base, if it is not to be found under the name that the adapter
                carries.

        Raises:
            ModelError: if the folder is neither, or was made without the tags.
        """
        if not folder.is_dir():
            raise ModelError(
                f"{folder}: no such folder; give an adapter or a model that `aegis run` made"
            )
        device = pick_device()
        attention = quick_attention(device)
        if (folder / ADAPTER_CARD_FILE).is_file():
            card = read_card(folder)
            trusted = card.settings.trust_remote_code
            base = resolve_base(base_spec or card.base["spec"], trust_remote_code=trusted)
            require_base(card, base, folder=folder)
            tokenizer = base.load_tokenizer()
            loaded: Any = base.load_model(
                dtype=fast_dtype(),
                attention=attention,
                quantization=card.settings.quantization,
            )
            tags = add_tags(tokenizer, loaded)
            adapted = load_adapter(folder, loaded, card, tags=tags).to(device)
            model, head, gates = adapted.base, adapted.head, adapted.all_gates()
        else:
            source = ModelFolder(folder)
            source.read_config()
            if not (folder / DECISION_HEAD_FILE).is_file():
                raise ModelError(
                    f"{folder}: has no decision head; give an adapter or a model that `aegis run` made"
                )
            tokenizer = source.load_tokenizer()
            tags = known_tags(tokenizer)
            loaded = source.load_model(dtype=fast_dtype(), attention=attention)
            model, head = loaded.to(device), DecisionHead.load(folder).to(device)
            gates = []
        return cls(model, tokenizer, tags, Judge.beside(folder, model, tokenizer, head), gates)

    def answer(
        self,
        prompt: str,
        *,
        paths: int = 1,
        threshold: float = 0.5,
        temperature: float = 0.7,
        limits: Limits = Limits(section=48, final=160),  # noqa: B008 - frozen
        seed: int = 0,
    ) -> Answer:
        """Decide about a prompt, think about it, and answer as `final_answer` says.

        Args:
            paths: how many ways of thinking are weighed against each other.
            threshold: below this score several paths become an ESCALATION.
            temperature: 0 takes the most probable token.

        Raises:
            DataError: if the prompt is longer than the model's context leaves room for.
        """
        verdict = self.judge.decide([prompt])[0]
        ids = self.ids(prompt)
        require_fit(ids, limit=self.judge.context - limits.total, where="prompt")
        thinker = ResponseSampler(self.model, self.tokenizer, self.tags, limits)
        generator = torch.Generator().manual_seed(seed)
        with hold_gates(self.gates):
            sampled = thinker(
                [ids] * paths,
                [verdict.decision] * paths,
                temperature=temperature,
                generator=generator,
            )
        return final_answer(prompt, verdict, usable_thinking(sampled), threshold=threshold)

    def ids(self, prompt: str) -> list[int]:
        """Token ids of the prompt, up to where the model starts to think."""
        return prompt_ids(
            self.tokenizer,
            prompt,
            system=self.judge.head.system_prompt if self.judge.head else None,
        )

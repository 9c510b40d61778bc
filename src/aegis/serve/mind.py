"""Decide, think in private, answer: one call, from an adapter or from a folded model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from aegis.data.records import detect_language
from aegis.decisions import NAMES, Decision
from aegis.errors import ModelError
from aegis.model.adapter import CARD, load_adapter, read_card, require_base
from aegis.model.calibration import Calibration
from aegis.model.device import fast_dtype, pick_device, quick_attention
from aegis.model.head import FILE as HEAD
from aegis.model.head import DecisionHead
from aegis.model.judge import Judge
from aegis.model.lexical import LexicalHead
from aegis.model.load import load_model, load_tokenizer, read_config, resolve_base
from aegis.model.prompt import prompt_ids, require_fit
from aegis.model.tags import Tags, add_tags, known_tags
from aegis.model.thinker import Limits, Thinker, require_paths
from aegis.serve.texts import fixed_text
from aegis.thinking import Thinking
from aegis.verification import STANCE_OF, SelfVerification, check, stance


@dataclass(frozen=True)
class Answer:
    """What leaves: the public answer and the decision.

    Args:
        probabilities: of the four decisions, in their order, before any escalation by self-verification.
        escalated: a person has to decide.
        score: of the self-verification, in [0, 1]; None for a single path.
        paths: the private thinking behind it, for the owner of the machine; in no repr and no JSON.
    """

    final: str
    decision: Decision
    probabilities: tuple[float, ...]
    escalated: bool
    score: float | None = None
    paths: tuple[Thinking, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        found = {
            "final": self.final,
            "decision": self.decision.name,
            "probabilities": dict(zip(NAMES, self.probabilities, strict=True)),
            "escalated": self.escalated,
        }
        return found if self.score is None else {**found, "score": round(self.score, 4)}


class Mind:
    """A model with its decision head and its thinker.

    Args:
        model: a transformers causal language model, adapted or folded, that knows the tags.
        judge: decides from the prompt alone.
    """

    def __init__(self, model: Any, tokenizer: Any, tags: Tags, judge: Judge) -> None:
        self.model, self.tokenizer, self.tags, self.judge = model, tokenizer, tags, judge

    @classmethod
    def load(cls, folder: Path, *, base_spec: str | None = None) -> Mind:
        """Read an adapter folder (with its base) or a model folder.

        Args:
            base_spec: the adapter's base, if it is not to be found under the name that the adapter carries.

        Raises:
            ModelError: if the folder is neither, or was made without the tags.
        """
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such folder; give an adapter or a model that `aegis run` made")
        device = pick_device()
        attention = quick_attention(device)
        if (folder / CARD).is_file():
            card = read_card(folder)
            trusted = card.settings.trust_remote_code
            base = resolve_base(base_spec or card.base["spec"], trust_remote_code=trusted)
            require_base(card, base, folder=folder)
            tokenizer = load_tokenizer(base.folder, trust_remote_code=trusted)
            loaded: Any = load_model(
                base.folder,
                dtype=fast_dtype(),
                trust_remote_code=trusted,
                attention=attention,
                quantization=card.settings.quantization,
            )
            tags = add_tags(tokenizer, loaded)
            adapted = load_adapter(folder, loaded, card, tags=tags).to(device)
            model, head = adapted.base, adapted.head
        else:
            read_config(folder, spec=str(folder))
            if not (folder / HEAD).is_file():
                raise ModelError(f"{folder}: has no decision head; give an adapter or a model that `aegis run` made")
            tokenizer = load_tokenizer(folder)
            tags = known_tags(tokenizer)
            loaded = load_model(folder, dtype=fast_dtype(), attention=attention)
            model, head = loaded.to(device), DecisionHead.load(folder).to(device)
        judge = Judge(model, tokenizer, head=head, lexical=LexicalHead.load(folder), calibration=Calibration.load(folder))
        return cls(model, tokenizer, tags, judge)

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
        """Decide about a prompt, think about it, and answer.

        The decision head decides. An answer that does not do what the decision asks for is replaced by a fixed text, and
        one that repeats its private thinking, declines what is allowed, or on which several paths do not agree, becomes an
        ESCALATION; what was stricter stays as it was.

        Args:
            paths: how many ways of thinking are weighed against each other.
            threshold: below this score several paths become an ESCALATION.
            temperature: 0 takes the most probable token.

        Raises:
            DataError: if the prompt is longer than the model's context leaves room for.
        """
        verdict = self.judge.decide([prompt])[0]
        system = self.judge.head.system_prompt if self.judge.head else None
        ids = prompt_ids(self.tokenizer, prompt, system=system)
        require_fit(ids, limit=self.judge.context - limits.total, where="prompt")
        thinker = Thinker(self.model, self.tokenizer, self.tags, limits)
        generator = torch.Generator(device=self.model.device).manual_seed(seed)
        sampled = thinker([ids] * paths, temperature=temperature, generator=generator)
        found = tuple(thinking for thinking in require_paths(sampled) if thinking)
        language = detect_language(prompt)
        decision, chosen, score = verdict.decision, (found[0] if found else None), None
        if paths > 1 and found:  # DENY and REFUSE are never weakened by it
            verified = SelfVerification(threshold)(prompt, found, decision=decision)
            score = verified.score * len(found) / paths  # an empty path agrees with nothing
            chosen = None if verified.chosen is None or score < threshold else found[verified.chosen]
            decision = decision if chosen else max(decision, Decision.ESCALATION)
        if chosen and not check(prompt, chosen).fresh:
            chosen, decision = None, max(decision, Decision.ESCALATION)
        if decision is Decision.ALLOW and (chosen is None or stance(chosen.public) == "decline"):
            decision, chosen = Decision.ESCALATION, None
        own = chosen is not None and stance(chosen.public) == STANCE_OF[decision]
        if chosen is None or (decision is not Decision.ALLOW and not own):
            final = fixed_text(decision, language)
        else:
            final = chosen.public
        return Answer(final, decision, verdict.probabilities, decision is Decision.ESCALATION, score, found)

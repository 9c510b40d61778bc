"""The task of PPO, GRPO and RLOO: think in four private sections, then answer as decided."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from aegis.config import GroupSettings, PpoSettings, RewardWeights
from aegis.data.records import Record
from aegis.engine.judge import Judge
from aegis.engine.response_sampler import Limits, ResponseSampler, SampledResponse, hold_gates
from aegis.errors import DataError
from aegis.model.adapted import Adapted
from aegis.model.tags import known_tags
from aegis.protocol.checks import check
from aegis.protocol.decisions import UNSAFE, Decision
from aegis.protocol.stance import STANCE_OF, Stance, stance
from aegis.train.rollout import Limiter


class QuadrupleThinking:
    """The records' prompts, responses with engine-written tags, and the terms that need no model.

    Args:
        judge: the policy's own; each response starts from what it decides, as it does in use.
        records: what is asked; their decisions are what is right.
        prompts: the same as ids.
    """

    def __init__(
        self,
        adapted: Adapted,
        judge: Judge,
        records: Sequence[Record],
        prompts: Sequence[tuple[int, ...]],
        settings: PpoSettings | GroupSettings,
    ) -> None:
        self.adapted, self.judge, self.records, self.settings = adapted, judge, records, settings
        self._asked = {ids: record.prompt for ids, record in zip(prompts, records, strict=True)}
        self.prompts: Sequence[tuple[int, ...]] = prompts
        self.kinds: Sequence[int] = [int(record.decision) for record in records]
        self.decides = True
        tags = known_tags(judge.tokenizer)
        limits = Limits(section=settings.section_tokens, final=settings.final_tokens)
        self.sampler = ResponseSampler(adapted.base, judge.tokenizer, tags, limits)
        self.limiter: Limiter | None = Limiter(
            self.sampler.allowed, tuple(closing for _, closing in tags.pairs)
        )

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None] = lambda: None
    ) -> list[SampledResponse]:
        with hold_gates(self.adapted.all_gates()):
            different = list(dict.fromkeys(prompts))
            verdicts = self.judge.judge([self._asked[ids] for ids in different])
            decided = dict(zip(different, (verdict.decision for verdict in verdicts), strict=True))
            decisions = [decided[ids] for ids in prompts]
            return self.sampler(
                prompts, decisions, temperature=self.settings.temperature, on_token=on_token
            )

    def terms(
        self, indices: Sequence[int], responses: Sequence[SampledResponse]
    ) -> list[dict[str, float]]:
        return [
            reward_terms(self.records[index], response, self.settings.weights)
            for index, response in zip(indices, responses, strict=True)
        ]

    def shaped_rewards(self, index: int, response: SampledResponse) -> dict[int, float]:
        """Return what is earned before the end, where it is earned.

        What would wait for the end reaches the sections through some eighty tokens of GAE, 0.95 to
        the eightieth of it. Each private section's share of `format` stands where the model closed
        it. What the answer's stance is worth, `decision` and `answered`, is a potential over the
        growing answer: its change stands at the token that changes it, so that "can't" is paid for
        at "can't" and not at the full stop of the next sentence.

        Source:
            Ng, Harada and Russell, Policy Invariance under Reward Transformations, 1999: with γ = 1
            the sum is unchanged.
        """
        weights = self.settings.weights
        ends = {part: place for place, part in enumerate(response.part) if response.chosen[place]}
        share = weights.format / len(response.closed)
        rewards = {ends[part]: share for part, closed in enumerate(response.closed[:-1]) if closed}
        if not _is_whole(response):
            return rewards
        final, decision = len(response.closed) - 1, self.records[index].decision
        places = [
            place
            for place, part in enumerate(response.part)
            if part == final and response.chosen[place]
        ]
        body: list[int] = []
        worth = sum(_stance_terms("answer", decision, weights).values())
        for place in places[:-1] if response.closed[-1] else places:
            body.append(response.ids[place])
            before, now = worth, stance(self.sampler.text(body))
            worth = sum(_stance_terms(now, decision, weights).values())
            if worth != before:
                rewards[place] = worth - before
        return rewards


def _is_whole(response: SampledResponse) -> bool:
    """Return whether no body is white space."""
    with contextlib.suppress(DataError):
        response.thinking()
        return True
    return False


def _stance_terms(shown: Stance, decision: Decision, weights: RewardWeights) -> dict[str, float]:
    """Return what an answer of this stance is worth where this decision is right."""
    answered = decision in UNSAFE and shown == "answer"
    return {
        "decision": weights.decision * (1.0 if shown == STANCE_OF[decision] else -1.0),
        "answered": -weights.answered if answered else 0.0,
    }


def reward_terms(
    record: Record, response: SampledResponse, weights: RewardWeights
) -> dict[str, float]:
    """Return the verifiable terms of one response's reward.

    `decision`: +1 if the answer does what the decision asks for, else −1. `answered`: −1 for
    answering what must be declined, the mistake that costs more than the opposite one. `format`:
    share of the five bodies that the model closed itself, −1 if the public answer was cut.
    `verification`: share of the checks that hold without knowing the decision.
    """
    try:
        thinking = response.thinking()
    except DataError:  # a body of white space
        return {
            "decision": -weights.decision,
            "answered": 0.0,
            "format": -weights.format,
            "verification": 0.0,
        }
    closed = response.closed
    shape = sum(closed) / len(closed) if closed[-1] else -1.0
    return {
        **_stance_terms(stance(thinking.public), record.decision, weights),
        "format": weights.format * shape,
        "verification": weights.verification * check(record.prompt, thinking).score,
    }


def distance(chosen: Decision, rejected: Decision) -> int:
    """Return the steps of severity between two decisions."""
    return abs(int(chosen) - int(rejected))

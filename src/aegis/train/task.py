"""What the policy is asked here: to think in four private sections, then to answer, and to do what
the decision asks for."""

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
    """The records' prompts, responses sampled with engine-written tags, and the terms that need no
    model.

    Args:
        judge: the policy's own; what it decides is told to each response, as it is in use.
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
        self.thinker = ResponseSampler(adapted.base, judge.tokenizer, tags, limits)
        self.limiter: Limiter | None = Limiter(
            self.thinker.allowed, tuple(closing for _, closing in tags.pairs)
        )

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None] = lambda: None
    ) -> list[SampledResponse]:
        with hold_gates(self.adapted.all_gates()):
            different = list(dict.fromkeys(prompts))
            verdicts = self.judge.judge([self._asked[ids] for ids in different])
            told = {ids: verdict.decision for ids, verdict in zip(different, verdicts, strict=True)}
            decisions = [told[ids] for ids in prompts]
            return self.thinker(
                prompts, decisions, temperature=self.settings.temperature, on_token=on_token
            )

    def terms(
        self, indices: Sequence[int], paths: Sequence[SampledResponse]
    ) -> list[dict[str, float]]:
        return [
            reward_terms(self.records[index], path, self.settings.weights)
            for index, path in zip(indices, paths, strict=True)
        ]

    def due(self, index: int, path: SampledResponse) -> dict[int, float]:
        """What is earned before the end, where it is earned; what would wait for the end reaches
        the sections through some eighty tokens of GAE, 0.95 to the eightieth of it.

        Each private section's share of `format` stands where the model closed it. What the answer's
        stance is worth, `decision` and `answered`, is a potential over the growing answer: its
        change stands at the token that changes it, so that "can't" is paid for at "can't" and not
        at the full stop of the next sentence.

        Source:
            Ng, Harada and Russell, Policy Invariance under Reward Transformations, 1999: with γ = 1
            the sum is unchanged.
        """
        ends = {part: place for place, part in enumerate(path.part) if path.chosen[place]}
        share = self.settings.weights.format / len(path.closed)
        found = {ends[part]: share for part, closed in enumerate(path.closed[:-1]) if closed}
        if not _is_whole(path):
            return found
        final = len(path.closed) - 1
        places = [
            place for place, part in enumerate(path.part) if part == final and path.chosen[place]
        ]
        decision, weights, body = self.records[index].decision, self.settings.weights, list[int]()
        worth = sum(_stance_terms("answer", decision, weights).values())
        for place in places[:-1] if path.closed[-1] else places:
            body.append(path.ids[place])
            before, worth = (
                worth,
                sum(_stance_terms(stance(self.thinker.text(body)), decision, weights).values()),
            )
            if worth != before:
                found[place] = worth - before
        return found


def _is_whole(path: SampledResponse) -> bool:
    """No body is white space."""
    with contextlib.suppress(DataError):
        path.thinking()
        return True
    return False


def _stance_terms(does: Stance, decision: Decision, weights: RewardWeights) -> dict[str, float]:
    """What an answer that does this is worth where this decision is right."""
    answered = decision in UNSAFE and does == "answer"
    return {
        "decision": weights.decision * (1.0 if does == STANCE_OF[decision] else -1.0),
        "answered": -weights.answered if answered else 0.0,
    }


def reward_terms(record: Record, path: SampledResponse, weights: RewardWeights) -> dict[str, float]:
    """The verifiable terms of one response's reward.

    `decision`: +1 if the answer does what the decision asks for, else −1. `answered`: −1 for
    answering what must be declined, the mistake that costs more than the opposite one. `format`:
    share of the five bodies that the model closed itself, −1 if the public answer was cut.
    `verification`: share of the checks that hold without knowing the decision.
    """
    try:
        thinking = path.thinking()
    except DataError:  # a body of white space
        return {
            "decision": -weights.decision,
            "answered": 0.0,
            "format": -weights.format,
            "verification": 0.0,
        }
    shape = sum(path.closed) / len(path.closed) if path.closed[-1] else -1.0
    return {
        **_stance_terms(stance(thinking.public), record.decision, weights),
        "format": weights.format * shape,
        "verification": weights.verification * check(record.prompt, thinking).score,
    }


def distance(chosen: Decision, rejected: Decision) -> int:
    """Steps of severity between two decisions."""
    return abs(int(chosen) - int(rejected))

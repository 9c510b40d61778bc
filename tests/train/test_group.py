"""GRPO and RLOO: they learn, they keep near the reference, they resume to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from aegis.config import GroupSettings
from aegis.data.records import Record
from aegis.engine.judge import Judge
from aegis.engine.response_sampler import SampledResponse
from aegis.engine.verdict import CalibratedHead
from aegis.errors import StoppedError
from aegis.model.prompt import PromptEncoder
from aegis.model.tags import known_tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import VERDICT_SECTION
from aegis.train.task import QuadrupleThinking
from tests.train.test_preference import (
    changed,
    group,
    grouped,
    policy,
    state,
    stopping,
    timeless,
    trained,
)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_groups_raise_a_verifiable_reward(algorithm: str, tokenizer: Any) -> None:
    adapted = policy()
    before = state(adapted)
    logs = group(algorithm, adapted)
    shares = [log["reward/share"] for log in logs]
    assert shares == pytest.approx([log["reward"] for log in logs])
    assert shares[0] < 0.5
    assert sum(shares[-5:]) / 5 >= 0.8
    assert logs[-1]["entropy"] < logs[0]["entropy"]
    moved = changed(before, adapted)
    assert moved
    assert all(".lora_" in name or name.startswith("gates.") for name in moved)
    assert not any("reference" in name or "alpha" in name for name in moved)


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_kl_penalty_keeps_the_policy_near(algorithm: str, tokenizer: Any) -> None:
    near = group(algorithm, policy(), beta=1.0, updates=20)
    far = group(algorithm, policy(), updates=20)
    assert near[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert near[-1]["reward"] < far[-1]["reward"]


@pytest.mark.parametrize(("algorithm", "stop_at"), [("grpo", 1), ("grpo", 2), ("rloo", 2)])
@pytest.mark.parametrize("inside", ["a step", "sampling"])
def test_groups_stopped_anywhere_and_resumed_are_uninterrupted(
    algorithm: str, stop_at: int, inside: str, tokenizer: Any, tmp_path: FilePath
) -> None:
    """Sampling asks once a token (4 an update), a step once."""
    options: dict[str, Any] = {"updates": 4, "beta": 0.1}
    whole, again = policy(), policy()
    logs = group(algorithm, whole, **options)
    at = 5 * stop_at + (0 if inside == "a step" else 2)
    with pytest.raises(StoppedError, match=f"from step {stop_at}"):
        group(
            algorithm,
            policy(),
            snapshots=stopping(tmp_path, lambda call: call in (at, at + 1)),
            **options,
        )
    torch.manual_seed(99)
    resumed = group(algorithm, again, snapshots=stopping(tmp_path, lambda _: False), **options)
    assert all(
        torch.equal(a, b) for a, b in zip(state(whole).values(), state(again).values(), strict=True)
    )
    assert timeless(resumed) == timeless(logs)


class Scripted(QuadrupleThinking):
    """Quadruple thinking that keeps what it sampled."""

    seen: list[SampledResponse]
    judged: dict[tuple[int, ...], Decision]

    def sample(
        self, prompts: Sequence[tuple[int, ...]], on_token: Callable[[], None] = lambda: None
    ) -> list[SampledResponse]:
        verdicts = self.judge.judge([record.prompt for record in self.records])
        self.judged = {
            ids: verdict.decision for ids, verdict in zip(self.prompts, verdicts, strict=True)
        }
        self.seen = super().sample(prompts, on_token)
        return self.seen


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_groups_think_in_the_protocol(algorithm: str, tokenizer: Any) -> None:
    adapted = policy(tokenizer)
    decisions = [Decision.ALLOW, Decision.REFUSE]
    records = [
        Record(f"r{n}", f"question {n}", decision, "en", "test")
        for n, decision in enumerate(decisions)
    ]
    prompts = [tuple(PromptEncoder(tokenizer).ids(record.prompt)) for record in records]
    settings = GroupSettings(
        updates=2, prompts=2, group=2, section_tokens=3, final_tokens=4, lr=1e-3
    )
    task = Scripted(
        adapted,
        Judge(adapted.base, tokenizer, CalibratedHead(adapted.head)),
        records,
        prompts,
        settings,
    )
    logs = trained(grouped(algorithm, adapted, task, settings))
    assert {"reward/decision", "reward/format", "decision_loss", "kl", "tokens", "ended"} <= logs[
        0
    ].keys()
    assert len(task.seen) == 4
    tags = known_tags(tokenizer)
    for path in task.seen:
        assert [token for token in path.ids if token in tags.ids] == list(tags.ids)
        told = path.ids.index(tags.pairs[VERDICT_SECTION][0]) + 1
        assert path.ids[told : told + 2] == verdict_ids(tokenizer, task.judged[path.prompt])[:2]
    assert logs[-1]["tokens"] == pytest.approx(sum(sum(path.chosen) for path in task.seen) / 4)
    assert "question" not in str(logs)

    part = (
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        2,
        3,
        3,
        3,
        4,
        4,
        4,
    )  # an opening tag, a word and a closing tag each
    closed = (True, False, True, True, True)
    chosen = tuple(place % 3 == 1 or (place % 3 == 2 and closed[place // 3]) for place in range(15))
    path = SampledResponse(
        (1,), tuple(range(15)), chosen, part, chosen, closed, ("a", "b", "c", "d", "e")
    )
    assert task.shaped_rewards(0, path) == {
        2: 0.2,
        8: 0.2,
        11: 0.2,
    }  # of the format's 1.0; the answer's own share is due at the end

    spelled = tokenizer("I can't; a colleague", add_special_tokens=False)["input_ids"]
    words = ["I can't; a colleague"[:end] for end in range(1, len(spelled) + 1)]
    assert [
        tokenizer.decode(spelled[:end]) for end in range(1, len(spelled) + 1)
    ] == words  # a byte a token
    ids, many = (*range(13), *spelled, 14), (True,) * len(spelled)
    chosen, part = (*chosen[:13], *many, True), (*part[:13], *(4,) * len(spelled), 4)
    path = SampledResponse((1,), ids, chosen, part, chosen, closed, ("a", "b", "c", "d", words[-1]))
    sections = {2: 0.2, 8: 0.2, 11: 0.2}
    assert task.shaped_rewards(0, path) == sections | {
        13 + len("I can'"): -2.0
    }  # ALLOW: where the answer turns into a refusal
    assert task.shaped_rewards(1, path) == sections | {
        13 + len("I can'"): 3.0
    }  # REFUSE: right, and no longer answered
    whole = sum(task.terms([1], [path])[0][name] for name in ("decision", "answered"))
    assert whole == pytest.approx(3.0 - 2.0)  # an empty answer stands for answering
    white = SampledResponse((1,), ids, chosen, part, chosen, closed, ("a", "b", "c", "d", " "))
    assert task.shaped_rewards(1, white) == sections

"""DPO: it learns, it leaves the base alone, and it resumes to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import pytest
import torch

from aegis.config import DpoSettings, GateSettings, GroupSettings, LoraSettings, ModelSettings
from aegis.errors import AegisError, DataError, StoppedError
from aegis.model.adapted import Adapted, attach
from aegis.model.prompt import PromptEncoder
from aegis.model.tags import known_tags
from aegis.protocol.decisions import Decision
from aegis.runs.events import Metrics, Reporter
from aegis.storage.snapshots import SnapshotStore
from aegis.train.group import GroupObjective, GrpoObjective, RlooObjective
from aegis.train.loop import TrainLoop
from aegis.train.policy import history_row
from aegis.train.preference import (
    DpoObjective,
    Preference,
    PreferenceBatch,
    encode_preferences,
    sequence_logprobs,
)
from aegis.train.rollout import RolloutCollector
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.snapshot_policy import SnapshotPolicy
from tests.conftest import tiny_model
from tests.train.test_ppo import Bandit

LOOP = LoopSettings(pad_id=1, seed=3)
MODEL = ModelSettings(
    lora=LoraSettings(rank=4, layers=(0.5, 1.0)), gates=GateSettings(layers=(0.5, 0.75))
)


def policy(tokenizer: Any = None) -> Adapted:
    """A tiny policy whose gates stand open, with its reference."""
    torch.manual_seed(0)
    adapted = attach(tiny_model(), MODEL, tags=known_tags(tokenizer) if tokenizer else None)
    adapted.set_alpha(1.6)
    for gate in adapted.all_gates():
        torch.nn.init.normal_(gate.generators, std=0.3)
    adapted.add_reference()
    return adapted


def preferences(count: int = 12) -> list[Preference]:
    """Answers of two tokens; the chosen side is one of eight even ids, the rejected one odd."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(20, 90, (count, 4), generator=generator).tolist()
    ends = torch.randint(100, 108, (count, 2), generator=generator).tolist()
    return [
        Preference((*row, 2 * a, 2 * b), (*row, 2 * a + 1, 2 * b + 1), 1, len(row), index % 4)
        for index, (row, (a, b)) in enumerate(zip(rows, ends, strict=True))
    ]


def margins(adapted: Adapted, pairs: Sequence[Preference]) -> torch.Tensor:
    """(pairs,) log π/π_ref of the chosen side over that of the rejected one, computed here and not
    by what is tested."""

    def logp(ids: tuple[int, ...], start: int) -> torch.Tensor:
        row = torch.tensor([ids])
        logits = adapted.peft(input_ids=row).logits[0, start - 1 : -1]
        return torch.log_softmax(logits, -1).gather(1, row[0, start:].unsqueeze(1)).sum()

    def difference(pair: Preference) -> torch.Tensor:
        return logp(pair.chosen, pair.prompt_length) - logp(pair.rejected, pair.prompt_length)

    with torch.no_grad():
        own = torch.stack([difference(pair) for pair in pairs])
        with adapted.acting_as("reference"):
            return own - torch.stack([difference(pair) for pair in pairs])


def dpo(
    adapted: Adapted,
    *,
    snapshots: SnapshotPolicy | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> list[dict[str, Any]]:
    settings = DpoSettings(
        **{"epochs": 4.0, "batch_tokens": 48, "lr": 3e-3, "gate_lr": 3e-3, **changes}
    )
    objective = DpoObjective(adapted, preferences(), settings, LOOP)
    return trained(objective, TrainServices(reporter or Reporter(), snapshots))


def group(
    algorithm: str, adapted: Adapted, *, snapshots: SnapshotPolicy | None = None, **changes: Any
) -> list[dict[str, Any]]:
    given = {
        "updates": 40,
        "prompts": 8,
        "group": 4,
        "lr": 1e-2,
        "gate_lr": 3e-3,
        "beta": 0.0,
        "decision": 0.0,
    }
    settings = GroupSettings(**{**given, **changes})
    task = Bandit(adapted, length=4)
    objective = grouped(algorithm, adapted, task, settings)
    return trained(objective, TrainServices(snapshots=snapshots))


def grouped(algorithm: str, adapted: Adapted, task: Any, settings: GroupSettings) -> GroupObjective:
    collector = RolloutCollector(adapted, task, settings, pad_id=1)
    return {"grpo": GrpoObjective, "rloo": RlooObjective}[algorithm](collector, settings, LOOP)


def trained(objective: Any, services: TrainServices | None = None) -> list[dict[str, Any]]:
    """Train to the end; return the log of every step."""
    logs = TrainLoop(objective, LOOP, services or TrainServices()).run()
    return [history_row(log) for log in logs]


def timeless(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in log.items() if "second" not in key} for log in logs]


def state(adapted: Adapted) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in adapted.state_dict().items()}


def changed(before: dict[str, torch.Tensor], adapted: Adapted) -> set[str]:
    return {
        name
        for name, tensor in adapted.state_dict().items()
        if not torch.equal(tensor, before[name])
    }


def stopping(folder: FilePath, at: Callable[[int], bool]) -> SnapshotPolicy:
    """Snapshots where the calls of `check` that `at` names raise."""
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if at(calls):
            raise StoppedError("asked to")

    return SnapshotPolicy(
        SnapshotStore(folder, fingerprint="same", keep=3), interval_s=1e9, check=check
    )


def test_dpo_raises_the_margin_of_the_chosen_side() -> None:
    adapted = policy()
    before = state(adapted)
    assert margins(adapted, preferences()).abs().max() < 1e-4
    logs = dpo(adapted)
    found = margins(adapted, preferences())
    assert (found > 0).float().mean() >= 0.9
    assert logs[0]["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert logs[-1]["rewards/margins"] > 0.05
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert {"decision_loss", "grad_norm", "learning_rate", "pairs", "tokens"} <= logs[0].keys()
    moved = changed(before, adapted)
    assert all(".lora_" in name or name.startswith("gates.") for name in moved)
    assert not any("reference" in name or "alpha" in name for name in moved)
    assert any(name.startswith("gates.") for name in moved)


def test_dpo_sees_gate_and_tag_rows_through_lm_head(tokenizer: Any) -> None:
    adapted = policy(tokenizer)
    assert adapted.rows
    torch.nn.init.normal_(adapted.rows.input, std=0.5)
    torch.nn.init.normal_(adapted.rows.output, std=0.5)
    tag = known_tags(tokenizer).ids[0]
    ids = torch.tensor([[20, 21, tag, 22, tag], [30, 31, 32, tag, 33]])
    labels = ids.clone()
    labels[:, :2] = -100
    batch = PreferenceBatch(
        ids, torch.ones_like(ids), (labels != -100).long(), torch.ones_like(ids), ids[:, 0]
    )
    found = sequence_logprobs(adapted, adapted.hidden(ids, batch.mask), batch)
    logs = torch.log_softmax(adapted.peft(input_ids=ids).logits[:, :-1], -1)
    expected = logs.gather(2, ids[:, 1:].unsqueeze(2)).squeeze(2)
    expected[:, 0] = 0
    torch.testing.assert_close(found, expected.sum(1), atol=1e-4, rtol=1e-4)


def test_a_training_leaves_the_policy_ready_to_use() -> None:
    for train in (
        dpo,
        lambda adapted: group("rloo", adapted, updates=1),
        lambda adapted: group("grpo", adapted, updates=1),
    ):
        adapted = policy()
        train(adapted)
        assert set(adapted.peft.peft_config) == {"default", "reference"}
        assert adapted.role == "policy"
        assert not adapted.training


def test_every_gradient_is_clipped_and_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, left, clipped = policy(), [], set()

    def watched(parameters: Any, limit: float) -> torch.Tensor:
        clipped.update(id(parameter) for parameter in parameters if parameter.grad is not None)
        return clip(parameters, limit)

    def look(event: Any) -> None:
        if isinstance(event, Metrics):
            left.append(any(parameter.grad is not None for parameter in adapted.parameters()))

    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watched)
    logs = dpo(adapted, epochs=1.0, reporter=Reporter(look))
    assert left == [False] * len(logs)
    assert clipped == {
        id(parameter) for parameter in adapted.parameters() if parameter.requires_grad
    }
    assert clipped & {id(parameter) for parameter in adapted.gates.parameters()}


def test_label_smoothing_and_a_limit_on_pairs(tokenizer: Any) -> None:
    smooth = dpo(policy(), epochs=1.0, label_smoothing=0.2, pairs=4)
    assert sum(log["pairs"] for log in smooth) == 4
    assert smooth[0]["loss"] - 0.5 * smooth[0]["decision_loss"] == pytest.approx(0.6931, abs=1e-3)


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_dpo_stopped_after_any_step_and_resumed_is_uninterrupted(
    tokenizer: Any, tmp_path: FilePath, stop_at: int
) -> None:
    whole, again = policy(), policy()
    logs = dpo(whole)
    assert len(logs) > 4
    with pytest.raises(StoppedError, match=f"from step {stop_at}"):
        dpo(policy(), snapshots=stopping(tmp_path, lambda call: call == stop_at))
    torch.manual_seed(99)
    resumed = dpo(again, snapshots=stopping(tmp_path, lambda _: False))
    assert all(
        torch.equal(a, b) for a, b in zip(state(whole).values(), state(again).values(), strict=True)
    )
    assert timeless(resumed) == timeless(logs)
    done = dpo(policy(), snapshots=stopping(tmp_path, lambda _: False))  # nothing is left to do
    assert timeless(done) == timeless(logs)


def test_what_is_not_finite_stops_before_the_step(tokenizer: Any) -> None:
    adapted = policy()
    adapted.head.linear.bias.data.fill_(float("nan"))
    before = [parameter.clone() for parameter in adapted.parameters()]
    with pytest.raises(
        AegisError,
        match=r"DPO step 1: loss nan and gradient norm nan must be finite.*Lower train.dpo.lr",
    ):
        dpo(adapted)
    after = adapted.parameters()
    assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(before, after, strict=True))


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"train\.algorithm dpo needs pairs"):
        DpoObjective(policy(), [], DpoSettings(), LOOP)
    empty = Bandit(policy(), length=1)
    empty.prompts = []
    with pytest.raises(DataError, match=r"train\.algorithm grpo needs prompts"):
        grouped("grpo", empty.adapted, empty, GroupSettings())


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (DpoSettings, {"beta": 0.0}, "beta"),
        (DpoSettings, {"label_smoothing": 0.5}, "label_smoothing"),
        (GroupSettings, {"group": 1}, "group"),
        (GroupSettings, {"beta": -1.0}, "beta"),
        (GroupSettings, {"minibatches": 5}, "must be a multiple of minibatches, got 24 and 5"),
    ],
)
def test_impossible_settings_are_named(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**changes)


def test_long_pairs_are_left_out(tokenizer: Any) -> None:
    from aegis.data.records import Pair, Side
    from aegis.protocol.thinking import SECTIONS, Thinking

    def side(final: str, decision: Decision) -> Side:
        bodies = dict.fromkeys(SECTIONS, "so")
        return Side(decision, Thinking.from_bodies(bodies, final, where="test"))

    sides = [
        (side("yes", Decision.ALLOW), side("no" * length, Decision.REFUSE)) for length in (1, 400)
    ]
    pairs = [Pair("p", "hello", "en", "test", *both) for both in sides]
    found = encode_preferences(tokenizer, pairs, system=None, max_length=200)
    assert len(found) == 1
    assert found[0].decision == Decision.ALLOW
    assert found[0].chosen[: found[0].prompt_length] == tuple(PromptEncoder(tokenizer).ids("hello"))
    assert found[0].chosen[found[0].prompt_length] == known_tags(tokenizer).pairs[0][0]

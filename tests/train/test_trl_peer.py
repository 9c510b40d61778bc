"""The losses of DPO, GRPO and RLOO are TRL's: its own trainers run on our forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, TrainerCallback, get_constant_schedule
from transformers import get_cosine_schedule_with_warmup as cosine
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_config import RLOOConfig
from trl.trainer.rloo_trainer import RLOOTrainer

from aegis.config import DpoSettings, GroupSettings
from aegis.model.trunk import Trunk
from aegis.train.group import GroupObjective
from aegis.train.policy import train_policy_only
from aegis.train.preference import DpoObjective
from aegis.train.rollout import Rollout, make_rollout
from tests.train.test_ppo import Bandit
from tests.train.test_preference import LOOP, grouped, policy, preferences, trained

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Losses(TrainerCallback):
    """Keeps every step's loss; ours clears gradients that TRL's trainer does not know of."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.losses = optimizer, list[float]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        torch.manual_seed(LOOP.seed)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "train_runtime" not in logs:
            self.losses.append(logs["loss"])


class Peer:
    """Mixed into a TRL trainer: our batches, our clipping, no telemetry."""

    peer_batches: Sequence[Any]
    optimizer: Any

    def get_train_dataloader(self) -> DataLoader[Any]:
        rows: Any = self.peer_batches
        return DataLoader(rows, batch_size=None, collate_fn=lambda batch: batch)

    def _clip_grad_norm(self, model: Any) -> float:
        groups = self.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        return float(nn.utils.clip_grad_norm_(parameters, LOOP.clip_norm))

    def _send_telemetry(self) -> None:
        pass


def arguments(folder: Path, objective: Any, *, accumulation: int = 1) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": objective.steps,
        "gradient_accumulation_steps": accumulation,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "remove_unused_columns": False,
    }


def losses_of(trainer: Any, objective: Any) -> list[float]:
    """Train with TRL; return the loss of every step."""
    kept = Losses(objective.optimizer)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(kept)
    trainer.train()
    return kept.losses


class Scores:
    """What TRL's DPO reads of a forward pass, (batch, time − 1) each."""

    def __init__(self, log_probs: Tensor) -> None:
        self.log_probs = log_probs
        self.entropy = self.mean_logits = torch.zeros_like(log_probs.detach())
        self.is_top1 = torch.zeros_like(log_probs.detach(), dtype=torch.bool)


class DpoPeer(Peer, DPOTrainer):
    def __init__(self, objective: DpoObjective, folder: Path, tokenizer: Any) -> None:
        settings, self.objective = objective.settings, objective
        loss: dict[str, Any] = {"loss_type": ["sigmoid"]}
        if settings.label_smoothing:
            loss = {"loss_type": ["robust"], "label_smoothing": settings.label_smoothing}
        config = DPOConfig(
            **arguments(folder, objective), beta=settings.beta, max_length=None, **loss
        )
        rows = [row_of(pair) for pair in objective.pairs]
        collate = DataCollatorForPreference(pad_token_id=LOOP.pad_id)
        self.peer_batches = [collate([rows[i] for i in indices]) for indices in objective.plan]
        adapted = objective.adapted
        reference: Any = Reference(self)
        warmup = round(settings.warmup * objective.steps)
        super().__init__(
            model=adapted.peft,
            ref_model=reference,
            args=config,
            train_dataset=datasets.Dataset.from_list(rows),  # type: ignore[attr-defined]
            processing_class=tokenizer,
            optimizers=(objective.optimizer, cosine(objective.optimizer, warmup, objective.steps)),
        )
        vars(reference).pop("forward", None)
        adapted.base.forward = self.scored

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # ids already

    def scored(self, *, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, **_: Any) -> Any:
        adapted = self.objective.adapted
        adapted.base.eval()
        hidden = adapted.hidden(input_ids, attention_mask)
        logs = adapted.logits(hidden[:, :-1]).float().log_softmax(-1)
        targets, asked = labels[:, 1:].clamp(min=0), labels[:, 1:] != -100
        return Scores(logs.gather(2, targets.unsqueeze(2)).squeeze(2) * asked)


class Reference(nn.Module):
    """The frozen reference as TRL wants one: a module to call."""

    def __init__(self, peer: DpoPeer) -> None:
        super().__init__()
        self.scored, self.config = peer.scored, peer.objective.adapted.base.config
        self.acting_as = peer.objective.adapted.acting_as

    def forward(self, **inputs: Any) -> Scores:
        with self.acting_as("reference"):
            return self.scored(**inputs)


def row_of(pair: Any) -> dict[str, list[int]]:
    start = pair.prompt_length
    return {
        "prompt_ids": list(pair.chosen[:start]),
        "chosen_ids": list(pair.chosen[start:]),
        "rejected_ids": list(pair.rejected[start:]),
    }


class GroupPeer(Peer):
    """To TRL a prompt is its number among the task's; it sees no text at all."""

    ref_model: Any
    beta: float

    def begin(self, objective: GroupObjective) -> None:
        settings, self.objective = objective.settings, objective
        self.adapted, self.collector = objective.adapted, objective.collector
        self.rows: Tensor | None = None
        self.peer_batches = [
            [{"prompt": index} for index in indices for _ in range(settings.group)]
            for indices in objective.plan
            for _ in range(settings.minibatches)
        ]

    def given(self, config_class: Any, folder: Path, tokenizer: Any) -> dict[str, Any]:
        settings, objective = self.objective.settings, self.objective
        config = config_class(
            **arguments(folder, objective, accumulation=settings.minibatches),
            per_device_train_batch_size=settings.batch // settings.minibatches,
            num_generations=settings.group,
            temperature=settings.temperature,
            beta=0.0,  # so that TRL makes no reference of its own
        )
        numbers = list(range(len(self.collector.task.prompts)))
        return {
            "model": self.adapted.peft,
            "reward_funcs": lambda **_: self.rewards,
            "args": config,
            "train_dataset": datasets.Dataset.from_dict({"prompt": numbers}),
            "processing_class": tokenizer,
            "optimizers": (objective.optimizer, get_constant_schedule(objective.optimizer)),
        }

    def settle(self) -> None:
        vars(self.adapted.base).pop("forward", None)
        if "ref" in self.adapted.peft.peft_config:
            self.adapted.peft.delete_adapter("ref")
        train_policy_only(self.adapted)
        self.ref_model, self.beta = nn.Module(), self.objective.settings.beta

    def respond(self, indices: list[int]) -> tuple[Any, Any, Any]:
        task = self.collector.task
        self.adapted.base.eval()
        with torch.no_grad():
            paths = task.sample([task.prompts[index] for index in indices], lambda: None)
            device = self.adapted.device
            self.rollout: Rollout = make_rollout(paths, task, pad_id=LOOP.pad_id, device=device)
            self.trunk = self.collector.trunk(self.rollout)
        self.rewards = [sum(row.values()) for row in task.terms(indices, paths)]
        chosen = [[int(yes) for yes in path.chosen] for path in paths]
        return [list(path.prompt) for path in paths], [list(path.ids) for path in paths], chosen

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        self.rows = None
        scored = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        return scored | {"rows": torch.arange(len(inputs))}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.rows = inputs["rows"]
        return super()._compute_loss(model, inputs)  # type: ignore[misc]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Any,
        logits_to_keep: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor, None]:
        rows = torch.arange(len(input_ids)) if self.rows is None else self.rows
        rollout, trunk = self.rollout.rows(rows), Trunk(self.trunk.layer, self.trunk.states[rows])
        self.adapted.base.eval()
        with self.adapted.acting_as("reference" if model is self.ref_model else "policy"):
            hidden = self.adapted.hidden(rollout.ids, rollout.mask, trunk=trunk)
            chosen, _ = self.collector.logprobs(hidden, rollout)  # pyright: ignore[reportAssignmentType]
        real = rollout.real.bool()
        columns = (rollout.positions - rollout.prompt_mask.sum(1, keepdim=True))[real]
        at = (torch.arange(len(rows)).unsqueeze(1).expand_as(real)[real], columns)
        logs = torch.zeros(len(rows), logits_to_keep).index_put(at, chosen[real])
        return logs, -logs.detach(), None


class GrpoPeer(GroupPeer, GRPOTrainer):
    def __init__(self, objective: GroupObjective, folder: Path, tokenizer: Any) -> None:
        self.begin(objective)
        super().__init__(**self.given(GRPOConfig, folder, tokenizer))
        self.settle()

    def _generate(self, prompts: list[int]) -> Any:
        prompt_ids, ids, chosen = self.respond(prompts)
        return prompt_ids, ids, chosen, [""] * len(ids), None, {}, None, []


class RlooPeer(GroupPeer, RLOOTrainer):
    def __init__(self, objective: GroupObjective, folder: Path, tokenizer: Any) -> None:
        self.begin(objective)
        super().__init__(**self.given(RLOOConfig, folder, tokenizer))
        self.settle()

    def _generate(self, prompts: list[int]) -> Any:
        prompt_ids, ids, _ = self.respond(prompts)
        return prompt_ids, ids, [""] * len(ids)


class Replayed(Bandit):
    """Gives the responses that were sampled first again: both sides see the same tensors."""

    def __init__(self, adapted: Any, kept: list[Any]) -> None:
        super().__init__(adapted, length=4)
        self.kept, self.updates, self.replays = kept, 0, bool(kept)

    def sample(self, prompts: Any, on_token: Any = lambda: None) -> Any:
        if not self.replays:
            self.kept.append(super().sample(prompts, on_token))
        self.updates += 1
        return self.kept[self.updates - 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_loses_what_trl_loses(smoothing: float, tokenizer: Any, tmp_path: Path) -> None:
    settings = DpoSettings(
        epochs=2.0, batch_tokens=48, decision=0.0, label_smoothing=smoothing, gate_lr=1e-3
    )
    ours = trained(DpoObjective(policy(), preferences(), settings, LOOP))
    objective = DpoObjective(policy(), preferences(), settings, LOOP)
    theirs = losses_of(DpoPeer(objective, tmp_path, tokenizer), objective)
    assert len(ours) > 4
    assert [row["loss"] for row in ours] == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("minibatches", [1, 2])
@pytest.mark.parametrize(("algorithm", "peer"), [("grpo", GrpoPeer), ("rloo", RlooPeer)])
def test_groups_lose_what_trl_loses(
    algorithm: str, peer: Any, minibatches: int, tokenizer: Any, tmp_path: Path
) -> None:
    settings = GroupSettings(
        updates=4, prompts=4, group=4, beta=0.1, decision=0.0, minibatches=minibatches, lr=1e-3
    )

    kept: list[Any] = []

    def objective() -> GroupObjective:
        adapted = policy()
        return grouped(algorithm, adapted, Replayed(adapted, kept), settings)

    ours = trained(objective())
    other = objective()
    theirs = losses_of(peer(other, tmp_path, tokenizer), other)
    assert [row["loss"] for row in ours] == pytest.approx(theirs, abs=1e-5)
    assert max(map(abs, theirs)) > 1e-5 or algorithm == "rloo"

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from aegis.config import (
    AnnealSettings,
    GateSettings,
    LossSettings,
    ModelSettings,
    TrainSettings,
    parse_config,
)
from aegis.data.records import parse_record
from aegis.errors import AegisError
from aegis.model import chunks
from aegis.model.adapted import attach
from aegis.model.tags import add_tags
from aegis.so8.losses import second_difference
from aegis.train import sft
from aegis.train.examples import EncodingSettings, Example, collate, encode_all, epoch_batches
from aegis.train.job import prompts_only
from aegis.train.loop import Loss, Objective, TrainLoop
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, make_plan, make_schedule, token_loss, train_sft
from tests.conftest import byte_tokenizer, tagged_tokenizer, tiny_model

THINKING = {"task": "t is asked", "safety": "nobody", "policy": "ALLOW", "final": "short"}


def records(count: int = 24) -> list[Any]:
    """Prompts whose decision one letter gives away; every fourth one carries its thinking."""
    rows = []
    for number in range(count):
        decision = ("ALLOW", "REFUSE")[number % 2]
        row = {
            "id": str(number),
            "prompt": f"{'a' if number % 2 else 'z'} {number}",
            "decision": decision,
        }
        if number % 4 == 0:
            row |= {"thinking": THINKING, "final": "Yes."}
        rows.append(parse_record(row, where="t:1"))
    return rows


def encoded(tokenizer: Any, **changes: Any) -> tuple[list[Example], int]:
    shared = {
        "section_weight": 0.5,
        "final_weight": 1.0,
        "max_length": 400,
        "thinking_records": None,
        "seed": 0,
    }
    settings = EncodingSettings(system=None, **{**shared, **changes})
    return encode_all(tokenizer, records(), [], settings)


def test_weights_lie_on_the_response_only(tokenizer: Any) -> None:
    examples, dropped = encoded(tokenizer)
    assert (len(examples), dropped) == (24, 0)
    long = examples[0]
    batch = collate([long, examples[1]], pad_id=1)
    assert not batch.weights[0, : long.prompt_length].any()
    assert (batch.weights[0, long.prompt_length : len(long.ids)] > 0).all()
    public = tokenizer.decode(
        [i for i, w in zip(long.ids[long.prompt_length :], long.weights, strict=True) if w == 1.0]
    )
    assert public == "<final>Yes.</final><|end|>"
    assert not batch.weights[1].any()
    assert batch.prompt_mask.sum(1).tolist() == [long.prompt_length, len(examples[1].ids)]


def test_long_thinking_falls_back_to_its_prompt_and_long_prompts_go(tokenizer: Any) -> None:
    examples, dropped = encoded(tokenizer, max_length=30)
    assert dropped == 0
    assert all(not example.weights for example in examples)
    assert encoded(tokenizer, max_length=3)[1] == 24
    assert sum(bool(e.weights) for e in encoded(tokenizer, thinking_records=2)[0]) == 2


def test_only_short_responses_keep_their_thinking_if_so_asked(tokenizer: Any) -> None:
    long = max(len(example.weights) for example in encoded(tokenizer)[0])
    for limit, kept in ((long, 6), (long - 1, 0)):
        examples, dropped = encoded(tokenizer, thinking_tokens=limit)
        assert (sum(bool(e.weights) for e in examples), len(examples), dropped) == (kept, 24, 0)


def test_as_many_records_teach_to_decide_as_asked_and_the_thinking_stays(tokenizer: Any) -> None:
    examples, dropped = encoded(tokenizer, decision_records=5)
    assert (sum(not e.weights for e in examples), len(examples), dropped) == (5, 11, 0)
    longest = min(len(e.ids) for e in examples if not e.weights)
    some = encoded(tokenizer, decision_tokens=longest)[0]
    assert all(e.weights or len(e.ids) <= longest for e in some)
    assert sum(bool(e.weights) for e in some) == 6
    assert not any(e.weights for e in encoded(tokenizer, thinking_records=0, decision_records=3)[0])


def test_validation_reads_every_record_however_few_teach_to_decide(tokenizer: Any) -> None:
    config = parse_config({"base": "embedded", "train": {"decision_records": 2}}, where="t")
    job: Any = SimpleNamespace(config=config)
    assert len(prompts_only(job, tokenizer, records())) == 24


def test_the_order_is_a_function_of_seed_and_epoch(tokenizer: Any) -> None:
    examples = encoded(tokenizer)[0]
    order = [
        epoch_batches(examples, batch_tokens=200, seed=s, epoch=e)
        for s, e in [(0, 0), (0, 0), (0, 1), (1, 0)]
    ]
    assert order[0] == order[1]
    assert order[0] != order[2]
    assert order[0] != order[3]
    assert all(sorted(i for batch in one for i in batch) == list(range(24)) for one in order)


@pytest.mark.parametrize("tied", [True, False])
def test_the_token_loss_holds_the_logits_of_few_places_at_once(
    monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    """A vocabulary of 262,144 words is a megabyte a place, and only targets are worth it."""
    tokenizer, model = byte_tokenizer(), tiny_model("gemma3_text", tie_word_embeddings=tied)
    adapted = attach(model, ModelSettings(), tags=add_tags(tokenizer, model))
    adapted.set_alpha(0.5)
    for number, parameter in enumerate(adapted.parameters()):
        if parameter.requires_grad:
            torch.nn.init.normal_(
                parameter, std=0.1, generator=torch.Generator().manual_seed(number)
            )
    batch = collate(encoded(tokenizer)[0][:8], pad_id=1)
    targets = int((batch.weights[:, 1:] > 0).sum())
    assert targets > 2 * 16
    widths, outcomes = list[int](), []
    adapted.base.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: widths.append(output.numel() // output.shape[-1])
    )
    for size in (16, targets):
        monkeypatch.setattr(chunks, "CHUNK", size)
        adapted.zero_grad()
        widths.clear()
        loss = token_loss(adapted, adapted.hidden(batch.ids, batch.mask), batch)
        assert sum(widths) == targets  # prompts, padding and records without thinking cost nothing
        loss.backward()
        assert max(widths) <= size
        gradients = [p.grad.clone() for p in adapted.parameters() if p.grad is not None]
        outcomes.append((loss.detach(), gradients))
    assert len(outcomes[0][1]) > 10
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-6, atol=0)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-5, atol=1e-5)


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(
        **{
            "epochs": 6,
            "batch_tokens": 256,
            "lr": 3e-3,
            "head_lr": 3e-2,
            "autocast": "off",
            **changes,
        }
    )


def trained(
    tokenizer: Any, *, seed: int = 0, model: ModelSettings | None = None, **changes: Any
) -> Any:
    torch.manual_seed(0)
    adapted = attach(tiny_model(), model or ModelSettings())
    examples = encoded(tokenizer)[0]
    data, loop = SupervisedData(examples, examples[:8]), LoopSettings(pad_id=1, seed=seed)
    result = train_sft(adapted, data, settings(**changes), loop)
    return adapted, result


def test_training_learns_and_opens_the_gates(tokenizer: Any) -> None:
    adapted, result = trained(tokenizer)
    assert result.validation[-1]["validation_accuracy"] == 1.0
    assert len(result.validation) == 6
    alphas = [log.extra["alpha"] for log in result.history]
    assert alphas[0] == -5.0
    assert alphas == sorted(alphas)
    assert result.alpha == pytest.approx(1.618033988749895)
    assert all(float(gate.generators.detach().abs().max()) > 0 for gate in adapted.all_gates())
    first, last = result.history[0], result.history[-1]
    assert last.loss < first.loss
    assert "tokens" in {part for log in result.history for part in log.parts}


def test_the_same_seed_gives_the_same_weights_to_the_last_bit(tokenizer: Any) -> None:
    (one, first), (two, second) = trained(tokenizer, epochs=1), trained(tokenizer, epochs=1)
    assert [log.loss for log in first.history] == [log.loss for log in second.history]
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )
    assert [log.loss for log in trained(tokenizer, epochs=1, seed=1)[1].history] != [
        log.loss for log in first.history
    ]


def test_every_loss_term_can_be_asked_for(tokenizer: Any) -> None:
    loss = LossSettings(
        pet=(0.1, 0.1, 0.1), nu_orth=0.1, mu_norm=0.1, rho_iso=0.1, label_smoothing=0.1
    )
    model = ModelSettings(gates=GateSettings(mode="additive", learn_alpha=True))
    adapted, result = trained(tokenizer, model=model, epochs=1, loss=loss)
    assert {"pet", "orth", "norm", "iso", "decision"} <= set(result.history[0].parts)
    assert "alpha" not in result.history[0].extra
    assert any(float(gate.alpha.detach()) != -5.0 for gate in adapted.all_gates())


@pytest.fixture(scope="module")
def plain() -> dict[str, float]:
    """What a training without any of the recovery settings ends with."""
    return _effects(LossSettings())


@pytest.mark.parametrize(
    ("changes", "measure", "rises"),
    [
        ({"pet": (0.1, 0.1, 0.1)}, "roughness", False),
        ({"safety": 4.0}, "allowed", False),
        ({"decision": 0.2}, "decision", True),
    ],
)
def test_each_of_the_recovery_settings_moves_what_it_is_for(
    plain: dict[str, float], changes: dict[str, Any], measure: str, rises: bool
) -> None:
    """PET smooths hidden states, safety allows less of what is unsafe, a lower weight of the
    decision leaves more of its loss."""
    before, after = plain[measure], _effects(LossSettings(**changes))[measure]
    assert (after > 1.02 * before) if rises else (after < 0.98 * before), (before, after)


def test_a_temperature_above_1_makes_the_raw_logits_surer() -> None:
    """Where the loss has an optimum, which smoothed labels give it: it is reached at T times it."""
    cool, warm = (
        _effects(LossSettings(label_smoothing=0.4, temperature=each), 4.0, 3e-2)["confidence"]
        for each in (1.0, 3.0)
    )
    assert warm > cool + 0.05, (cool, warm)


def _effects(loss: LossSettings, epochs: float = 2.0, head_lr: float = 1e-3) -> dict[str, float]:
    tokenizer = tagged_tokenizer()
    adapted, _ = trained(tokenizer, epochs=epochs, loss=loss, head_lr=head_lr)
    batch = collate(encoded(tokenizer)[0], pad_id=1)
    with torch.no_grad():
        hidden = adapted.hidden(batch.ids, batch.mask)
        chances = adapted.decide(hidden, batch.prompt_mask).softmax(-1)
    right = chances.gather(1, batch.decisions[:, None])
    return {
        "roughness": float(second_difference(hidden, batch.mask)),
        "allowed": float(chances[batch.decisions >= 2, 0].mean()),
        "decision": float(-right.log().mean()),
        "confidence": float(chances.amax(-1).mean()),
    }


def test_accumulated_batches_make_the_step_that_one_large_batch_makes(tokenizer: Any) -> None:
    loss = LossSettings(nu_orth=0.1, rho_iso=0.1)
    model = ModelSettings(gates=GateSettings(mode="additive"))
    shared = {"epochs": 2, "loss": loss, "model": model}
    large = trained(tokenizer, batch_tokens=1024, **shared)[1]
    small = trained(tokenizer, batch_tokens=256, gradient_accumulation=4, **shared)[1]
    assert len(large.history) == len(small.history)
    for one, other in zip(large.history, small.history, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-3)
        assert other.tokens == one.tokens
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-2)


def test_checks_lie_evenly_before_the_end_and_read_as_many_records_as_asked(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = sft.validate

    def counting(adapted: Any, examples: Any, *rest: Any, **named: Any) -> Any:
        read.append(len(examples))
        return whole(adapted, examples, *rest, **named)

    monkeypatch.setattr(sft, "validate", counting)
    _, result = trained(tokenizer, epochs=1, batch_tokens=96, checks=3, check_records=3)
    steps = len(result.history)
    expected = [round(steps * part / 4) for part in (1, 2, 3)]
    assert [check["step"] for check in result.validation] == [*expected, steps]
    assert read == [3, 3, 3, 8]


def test_fractions_of_epochs_and_shares_of_steps_are_kept(tokenizer: Any) -> None:
    examples = encoded(tokenizer)[0]
    whole, ends = make_plan(examples, settings(epochs=2), seed=0)
    half, half_ends = make_plan(examples, settings(epochs=1.5), seed=0)
    assert len(half) == pytest.approx(0.75 * len(whole), abs=1)
    assert max(ends) == len(whole)
    assert max(half_ends) == len(half)
    schedule = make_schedule(settings(anneal=AnnealSettings(warmup=0.5, annealing=0.5)), steps=100)
    assert (schedule.warmup_steps, schedule.annealing_steps) == (50, 50)


class Breaking(Objective[int]):
    """The sum of one weight; not finite from the second step on."""

    name, label, remedy, steps = "sft", "breaking", "Lower it", 3

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)

    def parts(self) -> dict[str, Any]:
        return {}

    def batches(self, step: int) -> list[int]:
        return [step]

    def loss(self, batch: int, step: int) -> Loss:
        return Loss(self.weight.sum() * (1.0 if step == 0 else float("nan")), {}, 1)

    def rate(self, step: int) -> float:
        return 1 / 3


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    objective = Breaking()
    with pytest.raises(AegisError, match="step 2: loss nan"):
        TrainLoop(objective, LoopSettings(pad_id=1, seed=0), TrainServices()).run()
    assert float(objective.weight.detach()) == pytest.approx(1 - 1 / 3)


def test_the_decisions_become_the_likeliest_tokens_at_a_prompts_end() -> None:
    """As a plain chat sees it."""
    tokenizer, model = byte_tokenizer(), tiny_model(hidden_size=64)
    tags = add_tags(tokenizer, model, decisions=True)
    torch.manual_seed(0)
    adapted = attach(model, ModelSettings(head="token"), tags=tags)
    examples = encoded(tokenizer)[0]
    data, loop = SupervisedData(examples, examples[:8]), LoopSettings(pad_id=1, seed=0)
    result = train_sft(adapted, data, settings(), loop)
    assert result.validation[-1]["validation_accuracy"] == 1.0
    for example in (each for each in examples if each.weights):
        with torch.no_grad():
            likeliest = adapted.base(torch.tensor([example.ids])).logits[0].argmax(-1).tolist()
        end = example.prompt_length
        assert likeliest[end - 1] == tags.decisions[example.decision] == example.ids[end]

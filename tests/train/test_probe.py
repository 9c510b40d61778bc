from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from aegis.config import GateSettings, ModelSettings
from aegis.errors import ModelError, StoppedError
from aegis.model.adapted import attach
from aegis.model.heads import pool
from aegis.model.tags import add_tags
from aegis.model.token_head import TokenHead
from aegis.storage.journal import Journal, Remember, compute_anew
from aegis.train.examples import collate, prompts_of
from aegis.train.probe import probe, refit
from tests.conftest import byte_tokenizer, tiny_model
from tests.train.test_sft import encoded, settings


def test_the_head_starts_from_what_the_base_knows(tokenizer: Any) -> None:
    examples = encoded(tokenizer)[0]
    adapted = attach(tiny_model(), ModelSettings(pooling="last+mean"))
    accuracy = probe(adapted, examples, settings(), pad_id=1, seed=0)
    assert accuracy is not None
    batch = collate(examples, pad_id=1)
    with torch.no_grad():
        logits = adapted.decide(
            adapted.hidden(batch.ids, batch.mask * batch.prompt_mask), batch.prompt_mask
        )
    right = float((logits.argmax(1) == batch.decisions).float().mean())
    assert right == accuracy > 0.7
    assert set(logits.argmax(1).tolist()) <= {
        0,
        3,
    }  # classes that never occurred stay out of the way


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_damaged_weight_is_told(tokenizer: Any, damage: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_decoder().norm.weight[3] = damage
    adapted = attach(model, ModelSettings())
    with pytest.raises(ModelError, match=r"a weight of it is damaged; download the base again"):
        probe(adapted, encoded(tokenizer)[0], settings(), pad_id=1, seed=0)


def test_without_two_decisions_the_head_stays_as_it_is(tokenizer: Any) -> None:
    examples = [example for example in encoded(tokenizer)[0] if example.decision == 0]
    adapted = attach(tiny_model(), ModelSettings())
    assert probe(adapted, examples, settings(), pad_id=1, seed=0) is None
    assert probe(adapted, examples, settings(probe_records=0), pad_id=1, seed=0) is None
    assert not adapted.head.linear.weight.any()


def test_a_killed_probe_goes_on_from_its_last_batch(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, heads, read = encoded(tokenizer)[0], list[dict[str, torch.Tensor]](), list[int]()

    def probed(remember: Remember) -> None:
        torch.manual_seed(0)
        adapted = attach(tiny_model(), ModelSettings())
        hidden = adapted.hidden

        def counted(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            read.append(len(ids))
            return hidden(ids, mask)

        monkeypatch.setattr(adapted, "hidden", counted)
        probe(adapted, examples, settings(batch_tokens=16), pad_id=1, seed=0, remember=remember)
        heads.append({k: v.clone() for k, v in adapted.head.state_dict().items()})

    def stop() -> None:
        if len(read) == batches + 2:
            raise StoppedError("stopped")

    probed(compute_anew)
    batches = len(read)
    assert batches > 3
    with pytest.raises(StoppedError):
        probed(Journal(tmp_path / "j.jsonl", check=stop))
    probed(Journal(tmp_path / "j.jsonl"))
    assert len(read) == 2 * batches
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_refitted_head_forgets_what_it_was_and_reads_what_was_trained(tokenizer: Any) -> None:
    examples = encoded(tokenizer)[0]
    adapted, again = (attach(tiny_model(), ModelSettings()) for _ in range(2))
    again.load_state_dict(adapted.state_dict())
    with torch.no_grad():
        adapted.head.linear.weight.normal_()
        adapted.head.mean.normal_()
    first, second = (refit(each, examples, settings(), pad_id=1) for each in (adapted, again))
    assert first == second
    assert first is not None
    assert torch.equal(adapted.head.linear.weight, again.head.linear.weight)
    with torch.no_grad():
        adapted.base.get_decoder().norm.weight.mul_(torch.rand(adapted.head.features) + 0.5)
    refit(adapted, examples, settings(), pad_id=1)
    assert not torch.equal(adapted.head.mean, again.head.mean)


def test_without_records_the_head_stays_as_the_steps_left_it(tokenizer: Any) -> None:
    adapted = attach(tiny_model(), ModelSettings())
    before = adapted.head.linear.weight.clone()
    assert refit(adapted, [], settings(), pad_id=1) is None
    assert torch.equal(adapted.head.linear.weight, before)


@torch.no_grad()
@pytest.mark.parametrize("lm_head", ["auto", False])
def test_a_fit_goes_into_the_weights_where_tokens_decide(lm_head: Any) -> None:
    """At first, and at last through a gate that has turned; not into an embedding that was read."""
    tokenizer, model = byte_tokenizer(), tiny_model(hidden_size=64, tie_word_embeddings=True)
    tags = add_tags(tokenizer, model, decisions=True)
    chosen = ModelSettings(head="token", gates=GateSettings(lm_head=lm_head))
    adapted, examples = attach(model, chosen, tags=tags), encoded(tokenizer)[0]
    batch = collate(prompts_of(examples), pad_id=1)

    def share() -> float:
        hidden = adapted.hidden(batch.ids, batch.mask)
        last = adapted.logits(pool(hidden, batch.mask, pooling="last")).argmax(-1)
        assert set(last.tolist()) <= {*tags.decisions}
        decided = adapted.decide(hidden, batch.prompt_mask).argmax(-1)
        return float((decided == batch.decisions).float().mean())

    accuracy = probe(adapted, examples, settings(), pad_id=1, seed=0)
    assert accuracy == pytest.approx(share(), abs=0.1)
    for gate in adapted.all_gates():
        gate.generators.normal_()
    adapted.set_alpha(1.0)
    rows = cast(TokenHead, adapted.head).rows()
    accuracy = refit(adapted, examples, settings(), pad_id=1, spoken=examples)
    if lm_head is False:
        assert accuracy is None
        assert torch.equal(cast(TokenHead, adapted.head).rows(), rows)
    else:
        assert accuracy == pytest.approx(share(), abs=0.1)

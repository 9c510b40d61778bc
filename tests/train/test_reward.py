from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import LoraSettings, ModelSettings, RewardSettings
from aegis.engine.response_sampler import Limits, ResponseSampler
from aegis.errors import AdapterError, DataError
from aegis.model.adapted import Adapted, attach
from aegis.model.prompt import pad
from aegis.model.tags import known_tags, verdict_ids
from aegis.protocol.decisions import Decision
from aegis.protocol.thinking import VERDICT_SECTION, Thinking
from aegis.train.examples import response_ids
from aegis.train.reward import (
    EncodedPair,
    bradley_terry,
    evaluate_reward,
    load_reward,
    save_reward,
    train_reward,
)
from aegis.train.services import LoopSettings
from tests.conftest import tiny_model

SETTINGS = RewardSettings(
    epochs=6, batch_tokens=256, lr=3e-3, head_lr=1e-2, lora=LoraSettings(rank=4, layers=(0.5, 1.0))
)


def adapted_model() -> Adapted:
    torch.manual_seed(0)
    adapted = attach(tiny_model(), ModelSettings())
    adapted.add_reference()
    return adapted


def pairs(count: int, *, seed: int = 0) -> list[EncodedPair]:
    """The better side ends with an even token; lengths say nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        lengths = torch.randint(6, 12, (2,), generator=generator).tolist()
        chosen, rejected = (
            torch.randint(20, 250, (length,), generator=generator).tolist() for length in lengths
        )
        found.append(EncodedPair((*chosen, 8), (*rejected, 9), 1))
    return found


def trained() -> tuple[Adapted, Any, Any]:
    adapted = adapted_model()
    adapted.add_reward(SETTINGS.lora)
    model, report, _ = train_reward(
        adapted, pairs(64), pairs(40, seed=1), SETTINGS, LoopSettings(pad_id=1, seed=0)
    )
    return adapted, model, report


def test_the_better_side_scores_higher_on_pairs_never_seen() -> None:
    adapted, model, report = trained()
    assert report.accuracy > 0.8  # a coin reaches 33 of 40 once in 40 000
    assert report.brier < 0.15
    assert abs(report.longer_wins - report.longer_chosen) < 0.3
    sides = [side for pair in pairs(64) for side in (pair.chosen, pair.rejected)]
    ids, mask = pad([list(side) for side in sides], value=1)
    with torch.no_grad():
        scores = model.score(adapted, ids, mask)
        base = adapted.hidden(ids, mask)
    assert float(scores.mean()) == pytest.approx(0, abs=1e-3)
    assert float(scores.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    fresh = adapted_model()
    with torch.no_grad():
        assert torch.equal(fresh.hidden(ids, mask), base)  # the policy is untouched


def test_a_reward_model_is_saved_and_loaded(tmp_path: Path) -> None:
    adapted, model, _ = trained()
    save_reward(
        tmp_path, adapted, model, {"base": {"spec": "tiny", "fingerprint": "f"}, "metrics": {}}
    )
    again = adapted_model()
    loaded = load_reward(tmp_path, again, base_fingerprint="f", settings=SETTINGS)
    ids = torch.randint(20, 250, (3, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for trunk in (None, again.trunk(ids, torch.ones_like(ids), layer=again.lowest_layer())):
            first = model.score(adapted, ids, torch.ones_like(ids))
            assert torch.equal(loaded.score(again, ids, torch.ones_like(ids), trunk=trunk), first)
    with pytest.raises(AdapterError, match=r"a reward model of another base \('tiny'\)"):
        load_reward(tmp_path, adapted_model(), base_fingerprint="g", settings=SETTINGS)
    (tmp_path / "reward.json").write_text(json.dumps({}))
    with pytest.raises(AdapterError, match="not a readable reward model"):
        load_reward(tmp_path, adapted_model(), base_fingerprint="f", settings=SETTINGS)


def test_the_margin_asks_for_distance() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    assert float(bradley_terry(one, zero, zero)) == pytest.approx(math.log(1 + math.exp(-1)))
    assert float(bradley_terry(one, zero, one)) == pytest.approx(math.log(2))


def test_length_bias_is_seen() -> None:
    adapted, model, _ = trained()
    longer = [
        EncodedPair((*pair.rejected, *pair.rejected, 8), pair.rejected, 1)
        for pair in pairs(12, seed=3)
    ]
    report = evaluate_reward(model, adapted, longer, SETTINGS, pad_id=1)
    assert report.longer_chosen == 1.0
    assert report.longer_wins == report.accuracy


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_held_out_pairs_are_told_as_not_known(count: int, tmp_path: Path) -> None:
    adapted = adapted_model()
    adapted.add_reward(SETTINGS.lora)
    settings = SETTINGS.model_copy(update={"epochs": 1.0})
    model, report, _ = train_reward(
        adapted, pairs(4), pairs(count, seed=1), settings, LoopSettings(pad_id=1, seed=0)
    )
    assert (report.accuracy is None) == (count == 0)
    assert report.length_correlation is None
    save_reward(
        tmp_path,
        adapted,
        model,
        {"base": {"spec": "tiny", "fingerprint": "f"}, "metrics": asdict(report)},
    )


def test_a_side_ends_where_a_sampled_response_ends(tokenizer: Any) -> None:
    thinking = Thinking.from_bodies(
        {"task": "t", "safety": "s", "policy": "A", "final": "A"}, "A", where="here"
    )
    tags = known_tags(tokenizer)
    ids, weights = response_ids(
        tokenizer, thinking, Decision.DENY, section_weight=0.5, final_weight=1.0, end=False
    )
    path = ResponseSampler(tiny_model(), tokenizer, tags, Limits(section=3, final=3))(
        [(2, 40)], [Decision.DENY]
    )[0]
    assert ids[-1] == path.ids[-1] == tags.pairs[-1][1]
    assert weights.count(1.0) == 3
    assert response_ids(tokenizer, thinking, Decision.DENY, section_weight=0.5, final_weight=1.0)[
        0
    ] == (*ids, 1)
    opened = ids.index(tags.pairs[VERDICT_SECTION][0]) + 1
    line = verdict_ids(tokenizer, Decision.DENY)
    assert ids[opened : opened + len(line)] == line
    bare = tokenizer("A", add_special_tokens=False)["input_ids"]
    assert ids[opened + len(line) :][: len(bare)] == tuple(bare)


def test_without_pairs_there_is_nothing_to_learn() -> None:
    adapted = adapted_model()
    adapted.add_reward(SETTINGS.lora)
    with pytest.raises(DataError, match="needs pairs"):
        train_reward(adapted, [], [], SETTINGS, LoopSettings(pad_id=1, seed=0))

from __future__ import annotations

from typing import Any

import torch

from aegis.config import ModelSettings
from aegis.model.adapted import attach
from aegis.train.examples import collate
from aegis.train.probe import probe
from tests.conftest import tiny_model
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


def test_without_two_decisions_the_head_stays_as_it_is(tokenizer: Any) -> None:
    examples = [example for example in encoded(tokenizer)[0] if example.decision == 0]
    adapted = attach(tiny_model(), ModelSettings())
    assert probe(adapted, examples, settings(), pad_id=1, seed=0) is None
    assert probe(adapted, examples, settings(probe_records=0), pad_id=1, seed=0) is None
    assert not adapted.head.linear.weight.any()

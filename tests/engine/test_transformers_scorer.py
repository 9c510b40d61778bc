from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from aegis.engine.scoring import Continuation, Row, deal
from aegis.engine.transformers_scorer import TransformersScorer
from tests.conftest import ARCHITECTURES, byte_tokenizer, random_model, tiny_model
from tests.model.architectures import tiny_config


def rows_of(vocabulary: int, seed: int = 0) -> list[Row]:
    """Rows of three choices, some behind a common header, some with one-token choices."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(count)]

    header, rows = ids(40), []
    for number in range(6):
        context = (header if number < 4 else []) + ids(rng.randint(3, 9))
        sizes = [1, 1, 1] if number == 2 else [rng.randint(1, 5) for _ in range(3)]
        rows.append(Row.of([Continuation(context, ids(size)) for size in sizes], 500))
    return rows


@torch.inference_mode()
def plainly(model: Any, row: Row) -> list[tuple[float, bool]]:
    """The scores by a pass over each choice's own sequence."""
    scores = []
    for chain in row.chains():
        logits = model(torch.tensor([chain.ids])).logits[0].float()
        (targets,) = chain.targets
        where = torch.tensor([place for place, _ in targets])
        tokens = torch.tensor([token for _, token in targets])
        log_probs = torch.log_softmax(logits[where], -1).gather(1, tokens[:, None])
        greedy = bool((logits[where].argmax(-1) == tokens).all())
        scores.append((float(log_probs.sum()), greedy))
    return scores


def check(scorer: TransformersScorer, rows: list[Row]) -> None:
    for batch in deal(rows, batch_tokens=60):
        part = [rows[index] for index in batch.members]
        for row, scores in zip(part, scorer.score(batch, part), strict=True):
            for score, (log_prob, greedy) in zip(scores, plainly(scorer.model, row), strict=True):
                assert score.log_prob == pytest.approx(log_prob, abs=1e-3)
                assert score.greedy == greedy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tree_gives_what_its_sequences_give(architecture: str) -> None:
    scorer = TransformersScorer(tiny_model(architecture), byte_tokenizer())
    assert scorer.trees
    check(scorer, rows_of(200))


@pytest.mark.parametrize("architecture", ["mamba", "bloom", "gpt2", "gemma3_text", "cohere"])
def test_every_architecture_is_scored_as_it_reads(architecture: str) -> None:
    config = tiny_config(architecture)
    if config is None:
        pytest.skip("transformers makes no tiny one")
    check(TransformersScorer(random_model(config), byte_tokenizer()), rows_of(64))


def test_beyond_a_sliding_window_choices_are_read_one_by_one() -> None:
    model = tiny_model("mistral", sliding_window=16)
    check(TransformersScorer(model, byte_tokenizer()), rows_of(200))


def test_text_is_the_most_probable_and_ends_before_a_stop() -> None:
    scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer())
    prompts = [scorer.ids(text) for text in ("a", "What is it?")]
    texts = scorer.write(prompts, ["\0"], 12)
    for ids, text in zip(prompts, texts, strict=True):
        output = scorer.model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
        alone = scorer.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
        assert text == alone.split("\0")[0]
    stop = texts[1][3]
    assert scorer.write(prompts[1:], [stop], 12)[0] == texts[1].split(stop)[0]


def test_ids_begin_as_the_harness_has_it() -> None:
    scorer = TransformersScorer(tiny_model("llama"), byte_tokenizer())
    assert scorer.prefix == scorer.tokenizer.bos_token_id
    assert scorer.ids("<s>a") == scorer.ids("a", special=False).__class__([0, *scorer.ids("a")])

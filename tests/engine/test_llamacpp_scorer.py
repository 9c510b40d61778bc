from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aegis.engine import llamacpp_scorer
from aegis.engine.llamacpp_scorer import LlamaCppScorer
from aegis.engine.scoring import Continuation, Row, deal
from aegis.engine.transformers_scorer import TransformersScorer
from aegis.errors import ModelError
from tests.engine.conftest import write_model
from tests.engine.test_transformers_scorer import rows_of

pytest.importorskip("cyllama")


@pytest.fixture(scope="module")
def scorers(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[LlamaCppScorer, TransformersScorer]]:
    folder = tmp_path_factory.mktemp("scorer") / "m"
    model, tokenizer = write_model(folder)
    scorer = LlamaCppScorer.load(folder / "gguf" / "model-f32.gguf")
    yield scorer, TransformersScorer(model, tokenizer)
    scorer.close()


def same(scorers: tuple[LlamaCppScorer, TransformersScorer], rows: list[Row]) -> None:
    ours, theirs = scorers
    for batch in deal(rows, batch_tokens=60):
        part = [rows[index] for index in batch.members]
        for row, other in zip(ours.score(batch, part), theirs.score(batch, part), strict=True):
            for score, expected in zip(row, other, strict=True):
                assert score.log_prob == pytest.approx(expected.log_prob, abs=1e-3)
                assert score.greedy == expected.greedy


def test_a_file_scores_as_transformers_does(
    scorers: tuple[LlamaCppScorer, TransformersScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    same(scorers, rows_of(200))
    monkeypatch.setattr(llamacpp_scorer, "_SEQUENCES", 5)
    same(scorers, rows_of(200, seed=1))
    monkeypatch.setattr(llamacpp_scorer, "_SEQUENCES", 3)  # fewer than a row has choices
    same(scorers, rows_of(200, seed=2))
    monkeypatch.setattr(llamacpp_scorer, "_STEP", 7)
    monkeypatch.setattr(llamacpp_scorer, "_SEQUENCES", 64)
    same(scorers, rows_of(200, seed=3))
    same(scorers, [Row.of([Continuation([5, 6], [7])], 100)])


def test_a_file_reads_and_writes_as_transformers_does(
    scorers: tuple[LlamaCppScorer, TransformersScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = scorers
    texts = ["Hello there", "人を助けるには", "a", "<s>b"]
    assert ours.prefix == theirs.prefix
    assert [ours.ids(text) for text in texts] == [theirs.ids(text) for text in texts]
    prompts = [ours.ids(text) for text in texts]
    written = ours.write(prompts, ["\0"], 12)
    for marker in theirs.tokenizer.all_special_tokens:  # control tokens in a converted file
        written = [text.replace(marker, "") for text in written]
    assert written == theirs.write(prompts, ["\0"], 12)
    monkeypatch.setattr(llamacpp_scorer, "_SEQUENCES", 2)
    assert ours.write(prompts, [written[0][2]], 12)[0] == written[0].split(written[0][2])[0]


def test_logits_of_a_text(scorers: tuple[LlamaCppScorer, TransformersScorer]) -> None:
    ours, theirs = scorers
    ids = list(range(10, 40))
    np.testing.assert_allclose(ours.logits(ids, 7), theirs.logits(ids, 7), atol=1e-4)
    assert ours.logits(ids, 7).shape[0] == 23


def test_a_cut_file_is_told(tmp_path: Path) -> None:
    write_model(tmp_path / "m")
    file = tmp_path / "m" / "gguf" / "model-f32.gguf"
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(ModelError, match=r"model-f32\.gguf: llama\.cpp cannot load it"):
        LlamaCppScorer.load(file)

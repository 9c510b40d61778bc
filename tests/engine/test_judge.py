from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from aegis.engine.judge import Judge
from aegis.engine.verdict import Verdict
from aegis.errors import DataError, ModelError, StoppedError
from aegis.model.calibration import Calibration, Threshold, Weights
from aegis.model.heads import DecisionHead
from aegis.model.lexical import LexicalHead
from aegis.protocol.decisions import Decision
from aegis.storage.journal import Journal

PROMPTS = [
    "Hi",
    "人を助けるには",
    "A much longer request than the others, to mix lengths in one batch",
    "x",
]


def chances(verdicts: list[Verdict]) -> np.ndarray:
    return np.array([verdict.probabilities for verdict in verdicts])


def test_batching_changes_no_verdict(model_folder: Path) -> None:
    judge = Judge.load(model_folder)
    together = chances(judge.judge(PROMPTS))
    alone = np.concatenate([chances(judge.judge([prompt])) for prompt in PROMPTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    for verdict in judge.judge(PROMPTS):
        assert sum(verdict.probabilities) == pytest.approx(1)
        assert verdict.decision == Decision(int(np.argmax(verdict.probabilities)))


def test_a_base_without_a_head_is_asked_by_likelihood(base_folder: Path) -> None:
    judge = Judge.load(base_folder)
    assert judge.head is None
    assert len({verdict.probabilities for verdict in judge.judge(PROMPTS)}) == len(PROMPTS)


def test_what_the_question_begins_with_is_read_once(base_folder: Path) -> None:
    judge = Judge.load(base_folder)
    decoder, lengths = judge.model.get_decoder(), list[tuple[int, ...]]()

    def counted(module: Any, args: Any, options: dict[str, Tensor]) -> None:
        lengths.append(tuple(options["input_ids"].shape))

    decoder.register_forward_pre_hook(counted, with_kwargs=True)
    together = chances(judge.judge(PROMPTS))
    (one, shared), (rows, rest) = lengths
    assert (one, rows) == (1, len(PROMPTS))
    assert shared > 50
    assert rest < shared + 100
    alone = np.concatenate([chances(judge.judge([prompt])) for prompt in PROMPTS])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_stopped_judging_goes_on_from_its_last_batch(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, read = Judge.load(base_folder, batch_tokens=64), list[int]()
    batch = judge._batch

    def counted(ids: Tensor, mask: Tensor) -> Tensor:
        read.append(len(ids))
        return batch(ids, mask)

    monkeypatch.setattr(judge, "_batch", counted)
    whole = judge.judge(PROMPTS)
    batches = len(read)
    assert batches > 2

    def stop_after_two() -> None:
        if len(read) % batches == 2:
            raise StoppedError("stopped")

    path = tmp_path / "judged.jsonl"
    with pytest.raises(StoppedError):
        judge.judge(PROMPTS, remember=Journal(path, check=stop_after_two))
    resumed = judge.judge(PROMPTS, remember=Journal(path))
    assert len(read) == 2 * batches
    assert chances(resumed).tolist() == chances(whole).tolist()
    assert judge.judge(PROMPTS, remember=Journal(path)) == resumed
    assert len(read) == 2 * batches


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "calibration.json").write_text("{"), "not a readable calibration"),
        (lambda f: Calibration(Weights(0.0)).save(f), "weights must be finite"),
        (
            lambda f: Calibration(threshold=Threshold(1.5, 0.1, 0.95, 9, 0, 0.1, "")).save(f),
            "threshold must hold shares",
        ),
        (
            lambda f: (f / "lexical_head.safetensors").write_bytes(b"x"),
            "not a readable lexical head",
        ),
        (
            lambda f: (f / "decision_head.safetensors").write_bytes(b"x"),
            "not a readable decision head",
        ),
        (lambda f: DecisionHead(64).save(f), "head is 64 wide, the model 32"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "weights cannot be loaded"),
    ],
)
def test_damaged_model_folders_are_told(model_folder: Path, damage, message: str) -> None:
    damage(model_folder)
    with pytest.raises(ModelError, match=message):
        Judge.load(model_folder)


def test_missing_folders_and_long_prompts_are_told(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such model folder"):
        Judge.load(tmp_path / "none")
    with pytest.raises(DataError, match=r"f:1: the prompt has .* tokens and the model reads 512"):
        Judge.load(model_folder).judge(["x" * 600], names=["f:1"])


def test_of_a_single_decision_the_words_learn_nothing() -> None:
    head = LexicalHead.fit(["river engine", "paper garden"], [3, 3], strength=1.0)
    assert np.allclose(head.logits(["river"]), -np.log(4))
    assert head.fit(["river", "paper"], [3, 0], strength=1.0).logits(["river"]).argmax() == 3

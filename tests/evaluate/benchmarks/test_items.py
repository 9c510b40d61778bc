from __future__ import annotations

import pytest

from aegis.engine.scoring import Score
from aegis.errors import BadInputError
from aegis.evaluate.benchmarks.items import Item
from aegis.evaluate.benchmarks.shipped import PlainTask

DOC = {"context": "x", "choices": ["y", "z"], "answer": 1}
PAIRS = (("x", " y"), ("x", " z"))


def test_the_most_probable_choice_counts_and_hashes_tell_prompts_apart() -> None:
    item = Item(PlainTask(), "c", 3, DOC, pairs=PAIRS)
    result = item.weighed([Score(-2.0, False), Score(-1.0, True)])
    assert (result.chosen, result.target, result.log_probs) == (1, 1, (-2.0, -1.0))
    assert (result.scores, result.doc_id) == ({"acc": 1.0}, 3)
    assert item.weighed([Score(-1.0, True), Score(-2.0, False)]).scores == {"acc": 0.0}
    other = Item(PlainTask(), "c", 3, DOC, pairs=(("x", " y"), ("x", " w")))
    assert other.prompt_hash != item.prompt_hash
    assert other.weighed([Score(-1.0, True)] * 2).doc_hash == result.doc_hash


def test_an_item_without_a_number_for_a_score_is_told() -> None:
    class Wordy(PlainTask):
        def process_results(self, doc: object, answers: object) -> dict[str, float]:
            return {}

    with pytest.raises(BadInputError, match="none of its metrics is a number"):
        Item(Wordy(), "c", 0, DOC, pairs=PAIRS).weighed([Score(-1.0, True)] * 2)

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import DataError
from aegis.evaluate.benchmarks.local_data import LOCAL_TASKS, read_examples, read_items

COLUMNS = {
    "arc_easy": {"question", "choices", "answerKey"},
    "arc_challenge": {"question", "choices", "answerKey"},
    "gsm8k": {"question", "answer"},
    "hellaswag": {"activity_label", "ctx_a", "ctx_b", "endings", "label"},
    "jcommonsenseqa": {"question", "label", *(f"choice{number}" for number in range(5))},
    "mmlu": {"question", "subject", "choices", "answer"},
    "winogrande": {"sentence", "option1", "option2", "answer"},
}


@pytest.mark.parametrize("name", LOCAL_TASKS)
def test_lines_get_the_columns_of_the_hub(name: str, data: Path):
    rows = read_items(LOCAL_TASKS[name], data)
    assert len(rows) == 12
    assert all(row.keys() == COLUMNS[name] for row in rows)
    assert len(read_examples(LOCAL_TASKS[name], data)) == (12 if name in ("gsm8k", "mmlu") else 0)


@pytest.mark.parametrize("line", ["{}", "[]", '{"question": "?", "choices": ["a"], "answer": 4}'])
def test_a_line_that_is_no_item_is_named(line: str, tmp_path: Path):
    (tmp_path / "arc_easy_test.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"arc_easy_test\.jsonl:1"):
        read_items(LOCAL_TASKS["arc_easy"], tmp_path)

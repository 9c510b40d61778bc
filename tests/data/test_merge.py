from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aegis.data.formats import read_items
from aegis.data.merge import Merge, convert_files, merged
from aegis.data.records import Rejected
from aegis.errors import BadInputError, DataError
from aegis.storage.artifact import read_manifest
from tests.data.test_formats import ROWS, text_of
from tests.data.test_records import SIDE


def inputs(folder: Path, *counts: int) -> tuple[Path, ...]:
    paths = []
    for number, count in enumerate(counts):
        rows = [
            {"id": f"{number}.{n}", "prompt": f"p{n}", "decision": "DENY"} for n in range(count)
        ]
        paths.append(folder / f"{number}.jsonl")
        paths[-1].write_text(text_of(rows))
    return tuple(paths)


def ids(merge: Merge) -> list[str]:
    return [item.id for item in merged(merge) if not isinstance(item, Rejected)]


def test_without_a_seed_the_order_is_that_of_the_inputs(tmp_path: Path) -> None:
    paths = inputs(tmp_path, 3, 2)
    assert ids(Merge(paths, (1, 1))) == ["0.0", "0.1", "0.2", "1.0", "1.1"]


def test_the_order_is_a_function_of_the_seed_alone(tmp_path: Path) -> None:
    one, other = inputs(tmp_path, 40, 40)
    order = ids(Merge((one, other), (1, 1), seed=7))
    assert order == ids(Merge((other, one), (1, 1), seed=7))
    assert order != ids(Merge((one, other), (1, 1), seed=8))
    assert sorted(order) == sorted(ids(Merge((one, other), (1, 1))))
    assert {name[0] for name in order[:20]} == {"0", "1"}


def test_a_weight_takes_its_share_and_keeps_the_rest_among_the_rejects(tmp_path: Path) -> None:
    paths = inputs(tmp_path, 2000, 10)
    items = list(merged(Merge(paths, (0.25, 1), seed=1)))
    out = [item for item in items if isinstance(item, Rejected)]
    assert len(items) == 2010
    assert abs(len(out) - 1500) < 80  # four standard deviations
    assert {item.reason for item in out} == {"left out by weight 0.25"}
    assert all(item.where.startswith("0.") for item in out)
    more = set(ids(Merge(paths, (0.5, 1), seed=1)))
    assert set(ids(Merge(paths, (0.25, 1), seed=1))) < more


MIXED: list[dict[str, Any]] = [
    *ROWS,
    {"id": "p", "prompt": "p", "chosen": SIDE, "rejected": {**SIDE, "final": "No."}},
    {"id": "t", "text": '複数の\n"行"', "response": "r", "tags": ["x", 1], "n": 3},
    {"id": "u", "text": "u", "n": "three", "provenance": {"licence": "MIT", "cost": 0.5}},
]


@pytest.mark.parametrize("name", ["o.jsonl", "o.json", "o.parquet", "folder", "hub"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / name
    source.write_text(text_of([*MIXED, {"prompt": ""}]), encoding="utf-8")
    counts = convert_files(
        Merge((source,), (1.0,)), target, hugging_face=name == "hub", say=lambda _: None
    )
    assert sum(counts.values()) == 7
    before = [i for i in read_items([source]) if not isinstance(i, Rejected)]
    after = [i for i in read_items([target]) if not isinstance(i, Rejected)]
    if name in ("o.parquet", "hub"):  # a column of several types is text
        columns = [item.to_json() for item in after]
        assert [json.loads(row["tags"]) for row in columns if "tags" in row] == [["x", 1]]
        texts = [(item.id, type(item)) for item in after]
        assert sorted(texts, key=str) == sorted(((i.id, type(i)) for i in before), key=str)
    else:
        assert sorted(after, key=str) == sorted(before, key=str)
    beside = tmp_path / f"{name}.rejected.jsonl"
    bad = beside if beside.exists() else target / "rejected.jsonl"
    assert json.loads(bad.read_text(encoding="utf-8"))["where"] == "in.jsonl:7"


@pytest.mark.parametrize("name", ["o.csv", "o.tsv"])
def test_cells_are_read_again(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / name
    source.write_text(text_of(MIXED[:5]), encoding="utf-8")
    convert_files(Merge((source,), (1.0,)), target, hugging_face=False, say=lambda _: None)
    before, after = list(read_items([source])), list(read_items([target]))
    assert after[:4] == before[:4]
    assert after[4].to_json() == {**before[4].to_json(), "n": "3", "tags": '["x", 1]'}


@pytest.mark.slow
def test_hugging_face_loads_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    source = tmp_path / "in.jsonl"
    source.write_text(text_of(MIXED), encoding="utf-8")
    merge = Merge((source,), (1.0,))
    convert_files(merge, tmp_path / "hub", hugging_face=True, say=lambda _: None)
    for name, count in (("records", 3), ("pairs", 1), ("plain", 2)):
        loaded = datasets.load_dataset(str(tmp_path / "hub"), name, cache_dir=str(tmp_path / "c"))
        assert loaded["train"].num_rows == count
    loaded["train"].save_to_disk(str(tmp_path / "saved"))
    saved: list[Any] = list(read_items([tmp_path / "saved"]))
    assert [item.id for item in saved] == ["t", "u"]
    assert "license: mit" in (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")


def test_the_result_depends_on_contents_not_on_paths(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (path,) = inputs(tmp_path / name, 3)
        convert_files(
            Merge((path,), (1.0,)), tmp_path / f"out-{name}", hugging_face=False, say=print
        )
    one, other = (read_manifest(tmp_path / f"out-{name}") for name in ("a", "b"))
    assert one == other


def test_inputs_and_other_folders_are_not_overwritten(tmp_path: Path) -> None:
    (path,) = inputs(tmp_path, 3)
    text = path.read_text()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for target in (path, tmp_path, tmp_path / "full"):
        with pytest.raises(BadInputError):
            convert_files(Merge((path,), (1.0,)), target, hugging_face=False, say=print)
    assert path.read_text() == text


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.parquet"])
def test_an_input_that_breaks_off_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    (path,) = inputs(tmp_path, 3)
    merge = Merge((path,), (1.0,))
    convert_files(merge, tmp_path / name, hugging_face=False, say=print)
    before = list(read_items([tmp_path / name]))
    rows = [{"id": str(n), "prompt": f"p{n}", "decision": "DENY"} for n in range(5000)]
    convert_files(
        Merge(inputs(tmp_path, 2), (1.0,)), tmp_path / "x.parquet", hugging_face=False, say=print
    )
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-10])
    path.write_text(text_of(rows))
    broken = Merge((path, tmp_path / "cut.parquet"), (1.0, 1.0), seed=1)
    with pytest.raises(DataError, match=r"cut\.parquet: damaged or cut short"):
        convert_files(broken, tmp_path / name, hugging_face=False, say=print)
    assert list(read_items([tmp_path / name])) == before
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from aegis.evaluate.foreign import READERS, ForeignScore, UnreadableError, read_scores
from tests.evaluate.test_outcomes import BASE, save_benchmark

LM_EVAL = {
    "results": {
        "arc_easy": {
            "alias": "arc_easy",
            "acc,none": 0.5,
            "acc_stderr,none": 0.01,
            "acc_norm,none": 0.4,
            "acc_norm_stderr,none": "N/A",
        },
        "gsm8k": {"exact_match,strict-match": 0.25, "exact_match_stderr,strict-match": 0.02},
    },
    "n-samples": {"arc_easy": {"original": 2376, "effective": 200}},
    "config": {"model": "hf", "model_args": "pretrained=org/model,dtype=float32"},
    "versions": {"arc_easy": 1.0},
}
LIGHTEVAL = {
    "config_general": {"model_name": "org/model", "lighteval_sha": "?"},
    "results": {
        "leaderboard|arc:challenge|25|0": {"acc": 0.5, "acc_stderr": 0.02},
        "all": {"acc": 0.5, "acc_stderr": 0.02},
    },
    "config_tasks": {"leaderboard|arc:challenge|25|0": {"effective_num_docs": 1172}},
}
INSPECT = {
    "version": 2,
    "status": "success",
    "eval": {"task": "gsm8k", "model": "hf/org/model", "dataset": {"samples": 100}},
    "results": {
        "total_samples": 100,
        "completed_samples": 99,
        "scores": [
            {
                "name": "match",
                "scorer": "match",
                "metrics": {
                    "accuracy": {"name": "accuracy", "value": 0.75},
                    "stderr": {"name": "stderr", "value": 0.04},
                },
            }
        ],
    },
    "samples": [],
}
LLAMA_BENCH = [
    {
        "model_filename": "models/m-Q4_K_M.gguf",
        "model_type": "llama 1B Q4_K - Medium",
        "n_prompt": 512,
        "n_gen": 0,
        "avg_ts": 100.0,
        "stddev_ts": 2.0,
        "samples_ts": [98.0, 100.0, 102.0, 100.0],
    },
    {"model_type": "llama 1B", "n_prompt": 0, "n_gen": 128, "n_depth": 64, "avg_ts": 20.0},
]
DECISIONS = {
    "task": "decisions",
    "accuracy": {"value": 0.8, "n": 10, "interval": [0.5, 0.9]},
    "macro_f1": {"value": None, "n": 0, "interval": None},
    "confusion": {"counts": []},
}
ANSWERS = {"task": "answers", **{name: {"value": 0.5, "n": 4} for name in ("base", "candidate")}}


def read(folder: Path, value: Any, name: str = "one.json") -> tuple[str, list[ForeignScore]]:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_scores(path)


def test_lm_eval(tmp_path: Path) -> None:
    assert read(tmp_path, LM_EVAL) == (
        "lm-eval",
        [
            ForeignScore("org/model", "arc_easy", "acc", 0.5, 200, 0.01),
            ForeignScore("org/model", "arc_easy", "acc_norm", 0.4, 200),
            ForeignScore("org/model", "gsm8k", "exact_match,strict-match", 0.25, None, 0.02),
        ],
    )


def test_lighteval(tmp_path: Path) -> None:
    task = "leaderboard|arc:challenge|25|0"
    expected = ForeignScore("org/model", task, "acc", 0.5, 1172, 0.02)
    assert read(tmp_path, LIGHTEVAL) == ("lighteval", [expected])


def test_inspect(tmp_path: Path) -> None:
    expected = ForeignScore("hf/org/model", "gsm8k", "accuracy", 0.75, 99, 0.04)
    assert read(tmp_path, INSPECT) == ("inspect", [expected])
    with pytest.raises(UnreadableError, match="status error"):
        read(tmp_path, {**INSPECT, "status": "error"})


@pytest.mark.parametrize("lines", [False, True])
def test_llama_bench(lines: bool, tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, LLAMA_BENCH)) if lines else json.dumps(LLAMA_BENCH)
    assert read(tmp_path, text, "bench.jsonl" if lines else "bench.json") == (
        "llama-bench",
        [
            ForeignScore("m-Q4_K_M.gguf", "pp512", "tokens/s", 100, 4, 1.0),
            ForeignScore("llama 1B", "tg128@d64", "tokens/s", 20),
        ],
    )


def test_ours(tmp_path: Path) -> None:
    path = save_benchmark(tmp_path, BASE, [1, 0, 1, 1]) / "arc_easy.json"
    name, (score,) = read_scores(path)
    assert (name, score.model, score.task, score.n) == ("AEGIS benchmarks", "base", "arc_easy", 4)
    assert (score.metric, score.value) == ("acc", 0.75)
    path = save_benchmark(tmp_path, BASE, [1, 0, 1, 1], scoring="letter") / "arc_easy.json"
    assert read_scores(path)[1][0].metric == "acc by letter"
    assert read(tmp_path, DECISIONS, "run/results/base/metrics.json") == (
        "AEGIS decisions",
        [ForeignScore("run/base", "decisions", "accuracy", 0.8, 10, None, (0.5, 0.9))],
    )
    answers = read(tmp_path, ANSWERS, "run/answers/answers.json")[1]
    assert [score.model for score in answers] == ["run/base", "run/candidate"]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"mmlu": 0.5, "arc": 61.5}, [("one", "mmlu", "accuracy"), ("one", "arc", "accuracy")]),
        ({"model": "m", "date": "x", "mmlu": 0.5}, [("m", "mmlu", "accuracy")]),
        ({"model": "m", "accuracy": 0.5, "n": 100}, [("m", "one", "accuracy")]),
        ({"results": {"mmlu": {"acc": 0.5, "acc_stderr": 0.1}}}, [("one", "mmlu", "acc")]),
        ({"model_name": "m", "benchmarks": {"mmlu": 0.5}}, [("m", "mmlu", "accuracy")]),
        ({"a": {"mmlu": 0.5}, "b": {"mmlu": 0.6}}, [("a", "mmlu", "accuracy")] * 2),
        ([{"task": "mmlu", "acc": 0.5}, {"benchmark": "x", "f1": 1}], [("one", "mmlu", "acc")] * 2),
    ],
)
def test_older_shapes(raw: Any, expected: list[tuple[str, ...]], tmp_path: Path) -> None:
    name, scores = read(tmp_path, raw)
    assert name == "older AEGIS"
    assert len(scores) == len(expected)
    first = scores[0]
    assert (first.model, first.task, first.metric) == expected[0]


def test_an_archive_of_inspect_is_read_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "one.eval"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("samples/1_epoch_1.json", "{}")
        archive.writestr("header.json", json.dumps(INSPECT))
    assert read_scores(path) == read(tmp_path, INSPECT)
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("_journal/start.json", "{}")
    for content, reason in (
        (path.read_bytes(), "without an end"),
        (b"{}", "no log of inspect"),
        (whole[: len(whole) // 2], "no log of inspect"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableError, match=reason):
            read_scores(path)


def test_an_archive_of_inspect_may_be_compressed_as_it_writes_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    text = json.dumps(INSPECT).encode()
    packed = pyarrow.compress(text, codec="zstd", asbytes=True)
    path = tmp_path / "one.eval"
    part = zipfile.ZipInfo("header.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("samples/1_epoch_1.json", "{}")
        archive.writestr(part, packed)
        part.compress_type, part.file_size = 93, len(text)  # goes into the directory at the end
    assert read_scores(path)[1] == read(tmp_path, INSPECT)[1]
    whole = bytearray(path.read_bytes())
    at = whole.index(packed)
    whole[at : at + 8] = b"\0" * 8
    path.write_bytes(whole)
    with pytest.raises(UnreadableError, match="no log of inspect"):
        read_scores(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ('{"results": {"a": {"acc": 0.5', "not valid JSON .*line 1"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": ' * 90_000 + "1" + "}" * 90_000, "nested too deeply"),
        ('{"hidden_size": 4096, "layers": 2}', "no known format .hidden_size, layers"),
        ('{"rope": {"factor": 8}, "size": 3, "kinds": []}', "no known format"),
        ('{"a": 1e999}', "no known format"),
        ('{"a": NaN, "b": true}', "no known format"),
        ("[]", "no known format"),
        ('{"words": {"deep": 0.7, "lexical": 1.6}, "threshold": {"allow": 0.5}}', "a calibration"),
        ("3", "no known format .int"),
        ("1" * 5000, "not valid JSON"),
        (json.dumps({f"t{number}": 0.5 for number in range(10_001)}), "more than 10,000 figures"),
        (json.dumps({**LM_EVAL, "results": {}}), "lm-eval without a figure"),
        (json.dumps({"config_general": {}, "results": []}), "lighteval without a figure"),
        (json.dumps({"eval": {}, "status": "success", "results": None}), "inspect without"),
        (json.dumps({"eval": {}, "status": "success", "results": {"scores": [1]}}), "inspect"),
    ],
)
def test_what_gives_nothing_is_said(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=reason):
        read(tmp_path, text)


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"a": "caf\xe9"}')
    with pytest.raises(UnreadableError, match="not valid JSON"):
        read_scores(tmp_path / "latin.json")
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_scores(tmp_path / "gone.json")
    monkeypatch.setattr("aegis.evaluate.foreign._MOST_BYTES", 3)
    with pytest.raises(UnreadableError, match="more than 0 MiB"):
        read(tmp_path, LM_EVAL)


@pytest.mark.parametrize("odd", [None, 3, "x", [], [1], {}, {"a": None}, {"a": []}, {"a": {}}])
@pytest.mark.parametrize("good", [LM_EVAL, LIGHTEVAL, INSPECT, LLAMA_BENCH[0], DECISIONS, ANSWERS])
def test_no_odd_value_breaks_a_reader(good: dict[str, Any], odd: Any, tmp_path: Path) -> None:
    def changed(value: Any) -> list[Any]:
        if not isinstance(value, dict):
            return [odd]
        inner = [{**value, key: new} for key, part in value.items() for new in changed(part)]
        return [odd, *inner]

    for value in changed(good):
        for reader in READERS.values():
            try:
                list(reader(value, tmp_path / "one.json") or ())
            except UnreadableError:
                continue

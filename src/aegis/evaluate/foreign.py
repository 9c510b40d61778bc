"""Figures out of result files of ours and of others: one reader a format, in one table."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aegis.evaluate.results import SCHEMA

_MOST_BYTES, _MOST_SCORES, _MOST_CHARACTERS = 1 << 26, 10_000, 200
_ZSTD = 93  # of the zip format
_MEASURES = ("accuracy", "macro_f1", "miss_rate", "over_refusal_rate")
_METRICS = {"acc", "acc_norm", "accuracy", "exact_match", "em", "f1", "macro_f1", "score", "mean"}
_METRICS |= {"bleu", "rouge", "rougeL", "mcc", "perplexity", "pass@1", "value", "brier", "auc"}
_NAMES = ("task", "benchmark", "name", "dataset")
_BODIES = ("results", "benchmarks", "scores", "metrics", "tasks")
_ABOUT = {"n", "limit", "seed", "shots", "num_fewshot", "timestamp", "time", "date", "version"}


class UnreadableError(Exception):
    """A file gives no figures, for the reason that the message has."""


@dataclass(frozen=True)
class ForeignScore:
    """One figure of a result file.

    Args:
        n: items behind it.
        error: its standard error.
        interval: as the file gives it.
        identity: what tells models of one name apart, where the file says it.
    """

    model: str
    task: str
    metric: str
    value: float
    n: int | None = None
    error: float | None = None
    interval: tuple[float, float] | None = None
    identity: str = ""


Reader = Callable[[Any, Path], Iterator[ForeignScore] | None]


def read_scores(path: Path) -> tuple[str, list[ForeignScore]]:
    """Return the name of a file's format and its figures.

    Raises:
        UnreadableError: if there are none, or the file is too large, cut or of no known format.
    """
    value, scores = _parse(path), list[ForeignScore]()
    for name, reader in READERS.items():
        if (given := reader(value, path)) is None:
            continue
        for score in given:
            scores.append(score)
            if len(scores) > _MOST_SCORES:
                raise UnreadableError(f"gives more than {_MOST_SCORES:,} figures")
        if not scores:
            raise UnreadableError(f"{name} without a figure")
        return name, scores
    keys = ", ".join(map(_text, [*value][:4])) if isinstance(value, dict) else type(value).__name__
    raise UnreadableError(f"no known format ({keys or 'empty'})")


def _parse(path: Path) -> Any:
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise UnreadableError(f"{size >> 20:,} MiB, more than {_MOST_BYTES >> 20} MiB")
        data = _inspect_header(path) if path.suffix == ".eval" else path.read_bytes()
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in data.splitlines() if line.strip()]
        return json.loads(data)
    except OSError as error:
        raise UnreadableError(f"cannot be read ({error.strerror})") from error
    except RecursionError as error:
        raise UnreadableError("not valid JSON (nested too deeply)") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UnreadableError(f"not valid JSON ({error.msg}, {where})") from error
    except ValueError as error:  # bytes that are no text, a number of too many digits
        raise UnreadableError(f"not valid JSON ({str(error)[:80]})") from error


def _inspect_header(path: Path) -> bytes:
    """Return what stands in inspect-ai's archive of a log beside the samples."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.getinfo("header.json")
            if part.file_size > _MOST_BYTES:
                raise UnreadableError(f"{part.file_size >> 20:,} MiB of figures")
            return _zstandard(path, part) if part.compress_type == _ZSTD else archive.read(part)
    except KeyError as error:
        raise UnreadableError("an inspect log without an end") from error
    except ImportError as error:
        told = "compressed as Zstandard; run: pip install pyarrow"
        raise UnreadableError(told) from error
    except (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError) as error:
        raise UnreadableError(f"no log of inspect ({error})") from error


def _zstandard(path: Path, part: zipfile.ZipInfo) -> bytes:
    """Return a part that Python's own zipfile cannot decompress, as inspect-ai writes them."""
    import pyarrow

    with path.open("rb") as file:
        file.seek(part.header_offset)
        *_, name, extra = struct.unpack("<4s5H3L2H", file.read(30))
        file.seek(name + extra, 1)
        packed = file.read(part.compress_size)
    try:
        return pyarrow.decompress(packed, part.file_size, codec="zstd", asbytes=True)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UnreadableError(f"no log of inspect ({str(error)[:80]})") from error


def _benchmarks(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read what `aegis evaluate benchmarks` writes."""
    if not (isinstance(raw, dict) and raw.get("schema") == SCHEMA):
        return None
    model, task = (_text(_dict(raw, name).get("name", "")) for name in ("model", "task"))
    folder, about = path.resolve().parent, _dict(raw, "model")
    if folder.parent.name == "benchmarks" and folder.name in ("base", "candidate"):  # a run's
        model = f"{folder.parent.parent.name}/{folder.name}"
    identity = f"{str(about.get('content', ''))[:8]} {about.get('dtype', '')}".strip()
    if shots := _dict(raw, "task").get("shots"):
        task = f"{task}, {_text(shots)} shots"
    by_letter = _dict(raw, "task").get("scoring") == "letter"  # never beside log-likelihoods
    named = _dict(raw, "measures").items()
    measures = {f"{name} by letter" if by_letter else name: value for name, value in named}
    scores = _measured(model, task, measures)
    return (replace(score, identity=identity) for score in scores)


def _decisions(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read `metrics.json` of `aegis evaluate decisions` or a run, whose folder names the model."""
    if not (isinstance(raw, dict) and isinstance(raw.get("confusion"), dict)):
        return None
    folder = path.resolve().parent
    run = folder.parent.parent.name if folder.parent.name == "results" else ""
    model = "/".join(name for name in (run, folder.name) if name)
    return _measured(model, "decisions", {name: raw.get(name) for name in _MEASURES})


def _answers(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read `answers.json` of a run."""
    if not (isinstance(raw, dict) and raw.get("task") == "answers"):
        return None
    run = path.resolve().parent.parent.name
    return (
        score
        for name in ("base", "candidate")
        for score in _measured(f"{run}/{name}", "questions", {"right": raw.get(name)})
    )


def _lm_eval(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read lm-evaluation-harness's results: `acc,none` beside `acc_stderr,none`."""
    if not (isinstance(raw, dict) and isinstance(raw.get("results"), dict)):
        return None
    if not raw.keys() & {"versions", "configs", "n-shot", "git_hash"}:
        return None
    settings, counts = _dict(raw, "config"), _dict(raw, "n-samples")
    asked = dict(
        part.split("=", 1) for part in str(settings.get("model_args")).split(",") if "=" in part
    )
    model = raw.get("model_name") or asked.get("pretrained") or settings.get("model") or path.stem
    return (
        score
        for task, metrics in raw["results"].items()
        if isinstance(metrics, dict)
        for score in _with_errors(model, task, metrics, _dict(counts, task).get("effective"))
    )


def _lighteval(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read lighteval's results, whose tasks are named `suite|task|shots`."""
    if not (isinstance(raw, dict) and isinstance(raw.get("config_general"), dict)):
        return None
    about, tasks = raw["config_general"], _dict(raw, "config_tasks")
    model = about.get("model_name") or _dict(about, "model_config").get("model_name") or path.stem
    return (
        score
        for task, metrics in _dict(raw, "results").items()
        if isinstance(metrics, dict) and task != "all"
        for score in _with_errors(
            model, task, metrics, _dict(tasks, task).get("effective_num_docs")
        )
    )


def _inspect(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read a log of inspect-ai.

    Raises:
        UnreadableError: if the evaluation did not end well.
    """
    if not (isinstance(raw, dict) and isinstance(raw.get("eval"), dict) and "status" in raw):
        return None
    if raw["status"] != "success":
        raise UnreadableError(f"an inspect log with status {_text(raw['status'])}")
    about, results = raw["eval"], _dict(raw, "results")
    given = [score for score in _list(results.get("scores")) if isinstance(score, dict)]

    def scores() -> Iterator[ForeignScore]:
        for score in given:
            metrics = {
                f"{score.get('name')}/{name}" if len(given) > 1 else name: part.get("value")
                for name, part in _dict(score, "metrics").items()
                if isinstance(part, dict) and name != "stderr"
            }
            error = _dict(_dict(score, "metrics"), "stderr").get("value")
            n = score.get("scored_samples") or results.get("completed_samples")
            for name, value in metrics.items():
                yield from _score((about.get("model"), about.get("task"), name), value, n, error)

    return scores()


def _llama_bench(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read llama-bench's JSON: tokens a second of reading (pp) and writing (tg)."""
    rows = raw if isinstance(raw, list) else [raw]
    if not rows or not all(isinstance(row, dict) and "avg_ts" in row for row in rows):
        return None

    def scores() -> Iterator[ForeignScore]:
        for row in rows:
            kinds = (
                ("pp", row.get("n_prompt")),
                ("tg", row.get("n_gen")),
                ("@d", row.get("n_depth")),
            )
            task = "".join(f"{kind}{count}" for kind, count in kinds if count)
            n = len(_list(row.get("samples_ts"))) or None
            spread = _number(row.get("stddev_ts"))
            error = spread / math.sqrt(n) if n and spread is not None else None
            model = Path(str(row.get("model_filename") or row.get("model_type"))).name
            yield from _score((model, task, "tokens/s"), row["avg_ts"], n, error)

    return scores()


def _older(raw: Any, path: Path) -> Iterator[ForeignScore] | None:
    """Read what earlier AEGIS wrote, at the top or below `results`, `scores` or the like:
    {task: share}, {task: {metric: share}}, {model: {task: share}}, a list of {task, metric}."""
    model = path.stem
    if isinstance(raw, dict):
        if isinstance(raw.get("threshold"), dict):
            raise UnreadableError("a calibration, no result")
        model = raw.get("model") or raw.get("model_name") or model
        raw = next((raw[name] for name in _BODIES if isinstance(raw.get(name), dict | list)), raw)
    if isinstance(raw, list):
        rows = [row for row in raw if isinstance(row, dict)]
        named = [(next((row[k] for k in _NAMES if k in row), None), row) for row in rows]
        raw = {name: row for name, row in named if isinstance(name, str)}
    if not isinstance(raw, dict) or not raw:
        return None
    scores = [*_older_scores(_text(model), raw, path.stem)]
    return iter(scores) if scores else None


def _older_scores(model: str, raw: dict[str, Any], stem: str) -> Iterator[ForeignScore]:
    told = {name: value for name, value in raw.items() if not isinstance(value, str)}
    told = {name: value for name, value in told.items() if name not in _ABOUT}
    numbers = [_number(value) for value in told.values()]
    if all(number is not None and 0 <= number <= 100 for number in numbers):
        for name, value in told.items():
            task, metric = (stem, name) if name in _METRICS else (name, "accuracy")
            yield from _score((model, task, metric), value)
    elif all(isinstance(value, dict) for value in told.values()):
        for name, inner in told.items():
            if any(key.partition(",")[0] in _METRICS for key in inner):
                yield from _with_errors(model, name, inner, inner.get("n"), only=_METRICS)
            elif all(_number(value) is not None for value in inner.values()):
                for task, value in inner.items():
                    yield from _score((name, task, "accuracy"), value)


def _measured(model: str, task: str, measures: dict[str, Any]) -> Iterator[ForeignScore]:
    """Yield figures of ours, which carry value, n and interval."""
    for name, part in measures.items():
        if isinstance(part, dict):
            ends = [_number(end) for end in _list(part.get("interval"))]
            low, high = ends if len(ends) == 2 else (None, None)
            interval = None if low is None or high is None else (low, high)
            yield from _score((model, task, name), part.get("value"), part.get("n"), None, interval)


def _with_errors(
    model: Any, task: str, metrics: dict[str, Any], n: Any, only: set[str] | None = None
) -> Iterator[ForeignScore]:
    """Yield figures whose standard error stands beside them as `NAME_stderr`."""
    for key, value in metrics.items():
        name, comma, kind = key.partition(",")
        if name.endswith("_stderr") or (only and name not in only):
            continue
        error = metrics.get(f"{name}_stderr{comma}{kind}")
        shown = name if kind in ("", "none") else key
        if not (name in ("alias", "sample_len", "samples") or isinstance(value, str)):
            yield from _score((model, task, shown), value, n, error)


def _score(
    names: tuple[Any, Any, Any],
    value: Any,
    n: Any = None,
    error: Any = None,
    interval: tuple[float, float] | None = None,
) -> Iterator[ForeignScore]:
    """Yield the figure if its value is a finite number."""
    if (number := _number(value)) is not None:
        count = int(n) if isinstance(n, int) and n > 0 else None
        model, task, metric = map(_text, names)
        yield ForeignScore(model, task, metric, number, count, _number(error), interval)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    text = "" if value is None else str(value).strip()
    return text[:_MOST_CHARACTERS] or "unnamed"


def _dict(raw: dict[str, Any], name: str) -> dict[str, Any]:
    inner = raw.get(name)
    return inner if isinstance(inner, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


# Tried in this order: what names its format before what is known by its shape.
READERS: dict[str, Reader] = {
    "AEGIS benchmarks": _benchmarks,
    "AEGIS decisions": _decisions,
    "AEGIS answers": _answers,
    "lighteval": _lighteval,
    "inspect": _inspect,
    "lm-eval": _lm_eval,
    "llama-bench": _llama_bench,
    "older AEGIS": _older,
}

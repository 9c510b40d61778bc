"""A folder of result files, whoever wrote them, as one summary."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import binomtest

from aegis import __version__
from aegis.errors import DataError
from aegis.evaluate.foreign import ForeignScore, UnreadableError, read_scores
from aegis.evaluate.paired import Interval
from aegis.inputs.text import has_no_end
from aegis.runs.reporter import bar

_MOST_FILES = 20_000
# What lies beside results and holds none: of ours, of models, of tokenizers.
_NO_RESULTS = {
    *("manifest.json", "metadata.json", "config.json", "generation_config.json", "summary.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "session_info.json", "heartbeat.json", "certificate.json", "statistics.json"),
    *("calibration.json", "comparison.json", "so8.json", "adapter_config.json", "reward.json"),
    "evidence.json",
}
_OF_A_RUN = {
    "calibration",
    "checkpoints",
    "progress_logs",
    "tensorboard",
    "raw",
    "records",
    "teacher",
}


@dataclass(frozen=True)
class Cell:
    """What all files say of one model, task and metric.

    Args:
        value: the mean over the files.
        interval: 95%; where several files say different things, their least and greatest value.
    """

    model: str
    task: str
    metric: str
    value: float
    n: int | None
    interval: Interval | None
    files: int


@dataclass(frozen=True)
class Spread:
    """One task and metric over the models.

    Args:
        highest: the model with the greatest value, which need not be the best.
    """

    task: str
    metric: str
    models: int
    mean: float
    deviation: float
    least: float
    greatest: float
    highest: str


@dataclass(frozen=True)
class Summary:
    """Everything that a folder's result files say.

    Args:
        formats: how many files of each.
        bad: files that gave nothing, and why.
    """

    formats: dict[str, int]
    cells: list[Cell]
    spreads: list[Spread]
    bad: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"schema": "aegis-summary-1", "aegis_version": __version__, **asdict(self)}


def summarise(folders: Sequence[Path]) -> Summary:
    """Read every result file below the folders.

    Raises:
        DataError: if a folder is none, holds too many files, or no file gives a figure.
    """
    files = [path for folder in folders for path in _files(folder)]
    formats, scores, bad = Counter[str](), list[ForeignScore](), dict[str, str]()
    with bar("reading results", len(files)) as advance:
        for path in files:
            try:
                if has_no_end(path):
                    raise UnreadableError("is a pipe or device")
                name, given = read_scores(path)
            except (UnreadableError, OSError) as error:
                bad[str(path)] = str(error)
            else:
                formats[name] += 1
                scores += given
            advance(1)
    if not scores:
        shown = f"; {next(iter(bad))}: {next(iter(bad.values()))}" if bad else ""
        raise DataError(
            f"{', '.join(map(str, folders))}: {len(files):,} JSON files and no result{shown}; "
            "give a folder with results"
        )
    cells = [_cell(key, given) for key, given in sorted(_by_figure(scores).items())]
    return Summary(dict(formats.most_common()), cells, _spreads(cells), bad)


def _by_figure(
    scores: Sequence[ForeignScore],
) -> dict[tuple[str, str, str], list[ForeignScore]]:
    """Group by model, task and metric; other models of the same name are named apart."""
    identities, groups = defaultdict[str, set[str]](set), dict[Any, list[ForeignScore]]()
    for score in scores:
        identities[score.model].add(score.identity)
    for score in scores:
        apart = len(identities[score.model]) > 1
        model = f"{score.model} {score.identity}".strip() if apart else score.model
        groups.setdefault((model, score.task, score.metric), []).append(score)
    return groups


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files that may be results, in order of their names; links are not followed."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; give one with results")
    count = 0
    for parent, folders, names in os.walk(folder):
        passed_over = _OF_A_RUN if "session.db" in names else set[str]()
        folders[:] = sorted(set(folders) - passed_over)
        for name in sorted(names):
            path = Path(parent) / name
            known = name not in _NO_RESULTS and not name.endswith(".index.json")
            if (known and path.suffix in (".json", ".eval")) or _is_bench(path):
                count += 1
                if count > _MOST_FILES:
                    raise DataError(f"{folder}: holds more than {_MOST_FILES:,} files; split it")
                yield path


def _is_bench(path: Path) -> bool:
    """Return whether it holds llama-bench's lines; other JSON Lines are items, not results."""
    try:
        if path.suffix != ".jsonl" or has_no_end(path):
            return False
        with path.open("rb") as file:
            return b'"avg_ts"' in file.readline(1 << 16)
    except OSError:
        return False


def _cell(key: tuple[str, str, str], scores: list[ForeignScore]) -> Cell:
    values = [score.value for score in scores]
    counts = {score.n for score in scores}
    n = counts.pop() if len(counts) == 1 else None
    one = len(set(values)) == 1
    interval = _interval(scores[0]) if one else (min(values), max(values))
    return Cell(*key, fmean(values), n, interval, len(scores))


def _interval(score: ForeignScore) -> Interval | None:
    """Return the 95% interval: the file's own, by its standard error, or exact for a share of n."""
    if score.interval:
        return score.interval
    if score.error is not None:
        return score.value - 1.96 * score.error, score.value + 1.96 * score.error
    if score.n and score.metric.startswith(("acc", "exact_match")) and 0 <= score.value <= 1:
        ends = binomtest(round(score.value * score.n), score.n).proportion_ci(method="exact")
        return float(ends.low), float(ends.high)
    return None


def _spreads(cells: Sequence[Cell]) -> list[Spread]:
    groups = dict[tuple[str, str], list[Cell]]()
    for cell in cells:
        groups.setdefault((cell.task, cell.metric), []).append(cell)
    spreads = list[Spread]()
    for (task, metric), part in sorted(groups.items()):
        values = [cell.value for cell in part]
        highest = max(part, key=lambda cell: cell.value).model
        deviation = stdev(values) if len(values) > 1 else 0.0
        ends = (min(values), max(values))
        spreads.append(Spread(task, metric, len(part), fmean(values), deviation, *ends, highest))
    return spreads

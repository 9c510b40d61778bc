"""Clean files into a data folder: in one process or several, resumable by shard."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from aegis.config import QualitySettings
from aegis.data.clean.finish import (
    Judge,
    find_repeated,
    judge_shard,
    step_versions,
    write_result,
)
from aegis.data.clean.read import PLACE, UNREADABLE
from aegis.data.clean.shards import PLAN, CleaningPlan, Shard, cut, do_shard
from aegis.data.folder import KIND, STATISTICS
from aegis.data.formats import data_files
from aegis.data.formats.rows import open_rows
from aegis.errors import BadInputError, MissingPackageError
from aegis.runs.reporter import bar
from aegis.storage.artifact import is_current, require_output, was_made_by, writing
from aegis.storage.files import fingerprint, hash_file, make_folder
from aegis.storage.lock import LOCK, only_process


@dataclass(frozen=True)
class Cleaning:
    """What is to be cleaned and how.

    Args:
        inputs: JSON Lines files, and data folders.
        held_out: files of prompts that nothing may be nearly the same as.
        model: name and content of the model that judges decisions; "" for the probe.
    """

    inputs: tuple[Path, ...]
    settings: QualitySettings
    held_out: tuple[Path, ...] = ()
    model: str = ""


def work_folder(out: Path) -> Path:
    """Return where the shards of a data folder lie until it is whole."""
    return out.with_name(f".{out.name}.cleaning")


@contextlib.contextmanager
def at_work(out: Path) -> Iterator[Path]:
    """Hold the work folder of `out` for this process; leave none that holds no plan.

    Raises:
        AegisError: if another process cleans into `out`.
    """
    work = work_folder(out)
    with only_process(work):
        try:
            yield work
        finally:
            if not (work / PLAN).exists():
                shutil.rmtree(work, ignore_errors=True)


def prepare(cleaning: Cleaning, out: Path) -> CleaningPlan:
    """Check what there is and write the plan into the work folder; leave an equal one's shards.

    The work folder is held.

    Raises:
        BadInputError: if a file cannot be used, or the folder holds something else.
    """
    _require_packages()
    files = _files(cleaning.inputs)
    held_out = _files(cleaning.held_out)
    contents = [[name, hash_file(path)] for path, name in (*files, *held_out)]
    settings = cleaning.settings.model_dump(mode="json")
    made_of = fingerprint(
        contents, len(files), settings, cleaning.model, step_versions(cleaning.settings)
    )
    if is_current(out, made_of):
        return CleaningPlan(made_of, cleaning.settings, ())
    require_output(out, kind=KIND, inputs=[*cleaning.inputs, *cleaning.held_out])
    work = work_folder(out)
    if (work / PLAN).exists() and not _is_of(work, made_of):
        (work / PLAN).unlink()  # first: shards without a plan are nobody's
    if not (work / PLAN).exists():
        for path in work.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    own = [shard for path, name in files for shard in _shards(path, name, work)]
    if not own:
        raise BadInputError(f"{cleaning.inputs[0]}: holds no line; give files with records")
    # Held-out lines first: one that cannot be used ends the cleaning.
    shards = [s for path, name in held_out for s in _shards(path, name, work, held_out=True)]
    plan = CleaningPlan(made_of, cleaning.settings, (*shards, *own))
    plan.write(work)
    return plan


def _shards(path: Path, name: str, work: Path, *, held_out: bool = False) -> Iterator[Shard]:
    """Cut the file, or where its rows stand as JSON Lines in UTF-8 if they do not there."""
    opened = open_rows(path, name)
    if opened.format.startswith("JSON Lines, UTF-8"):
        yield from cut(path, name, held_out=held_out)
        return
    target = work / "input" / f"{fingerprint(str(path))[:16]}.jsonl"
    make_folder(target.parent)
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for row in opened.rows:
            values = {UNREADABLE: row.problem, "line": row.text} if row.problem else row.values
            file.write(json.dumps({PLACE: row.where, **values}, ensure_ascii=False) + "\n")
    yield from cut(target, name, held_out=held_out, converted=True)


def clean_files(
    cleaning: Cleaning, out: Path, *, processes: int = 1, judge: Judge | None = None
) -> dict[str, Any]:
    """Clean into `out`, the same whatever the number of processes; return its statistics.

    Killed at any instant, the same call goes on: a shard that is done is not done again.

    Raises:
        BadInputError: if the input cannot be used; nothing has been changed.
    """
    with at_work(out) as work:
        plan = prepare(cleaning, out)
        if not was_made_by(out, plan.fingerprint):
            with _workers(min(processes, len(plan.shards))) as pool:
                each_shard(do_shard, work, plan, pool=pool, label="cleaning")
                find_repeated(work, plan, probe=judge is None)
                if plan.settings.check_decisions and judge is None:
                    each_shard(judge_shard, work, plan, pool=pool, label="judging")
            if plan.settings.check_decisions and judge is not None:
                do = partial(judge_shard, judge=judge)
                each_shard(do, work, plan, pool=None, label="judging")
            finish(work, plan, out)
        (work / PLAN).unlink(missing_ok=True)
    return json.loads((out / STATISTICS).read_text(encoding="utf-8"))


def finish(work: Path, plan: CleaningPlan, out: Path) -> None:
    """Write the data folder of shards that are all done."""
    with writing(out, kind=KIND, fingerprint=plan.fingerprint) as staging:
        write_result(work, plan, staging)


def each_shard(
    do: Callable[[Path, CleaningPlan, int], None],
    work: Path,
    plan: CleaningPlan,
    *,
    pool: Executor | None,
    label: str,
) -> None:
    """Call `do(work, plan, number)` for every shard, in this process without a pool."""
    numbers = range(len(plan.shards))
    with bar(label, len(numbers)) as advance:
        if pool is None:
            for number in numbers:
                do(work, plan, number)
                advance()
            return
        for future in as_completed([pool.submit(do, work, plan, n) for n in numbers]):
            future.result()
            advance()


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[Executor | None]:
    """Start so many processes once for all that shards need; none for a single one."""
    if processes == 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _end_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have the worker end when its parent does, however that ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_of(work: Path, made_of: str) -> bool:
    try:
        return CleaningPlan.read(work).fingerprint == made_of
    except BadInputError:
        return False


def _files(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return the files with the shortest ends of their paths that tell them apart."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise BadInputError(f"{path}: no such file; give JSON Lines files or data folders")
        files += data_files(path)
    if again := [path for path, count in Counter(map(Path.resolve, files)).items() if count > 1]:
        raise BadInputError(f"{again[0]}: is given twice; give each file once")
    ends = [path.absolute().parts[::-1] for path in files]
    counts = Counter(end[:n] for end in ends for n in range(1, len(end) + 1))
    shortest = [next(n for n in range(1, len(end) + 1) if counts[end[:n]] == 1) for end in ends]
    names = ["/".join(end[:n][::-1]) for end, n in zip(ends, shortest, strict=True)]
    return list(zip(files, names, strict=True))


def _require_packages() -> None:
    try:
        import ftfy  # noqa: F401
        import pycld2  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"cleaning needs {error.name}; install it: pip install 'aegis-so8t[data]'"
        ) from error

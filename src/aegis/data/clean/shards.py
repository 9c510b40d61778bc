"""What one worker does: a shard of the input, looked at item by item, on the disk whole or not."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aegis.config import QualitySettings
from aegis.data.clean.near import HELD_OUT, band_keys
from aegis.data.clean.read import MOST_BYTES, LineOutcome, lines_of, read_line
from aegis.data.clean.steps import item_steps
from aegis.data.clean.whole import FACTS, facts_of, prompt_for
from aegis.data.report import Profile, Statistics, profile_of, reason_kind
from aegis.errors import BadInputError
from aegis.storage.files import make_folder, sync_file, sync_folder, write_json

PLAN, ITEMS, REJECTED, TRACE = "plan.json", "items.jsonl", "rejected.jsonl", "trace.jsonl"
FACTS_FILE, BANDS, COUNTS = "facts.npy", "bands.npy", "counts.json"
_MOST_LINES = 2_000
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Shard:
    """Lines of a JSON Lines file: bytes from `start` to `end`, the first of which is line `first`.

    Args:
        name: how messages and ids call the file.
        held_out: whether the lines are only to be compared with.
        converted: whether each line tells where its row stood in a file of another format.
    """

    path: str
    name: str
    start: int
    end: int
    first: int
    held_out: bool = False
    converted: bool = False


@dataclass(frozen=True)
class CleaningPlan:
    """What a cleaning does, in `plan.json` of its work folder."""

    fingerprint: str
    settings: QualitySettings
    shards: tuple[Shard, ...]

    def write(self, work: Path) -> None:
        make_folder(work)
        settings = self.settings.model_dump(mode="json")
        shards = [asdict(shard) for shard in self.shards]
        content = {"fingerprint": self.fingerprint, "settings": settings, "shards": shards}
        write_json(work / PLAN, content)

    @classmethod
    def read(cls, work: Path) -> CleaningPlan:
        """Read a plan.

        Raises:
            BadInputError: if there is none.
        """
        try:
            raw = json.loads((work / PLAN).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"{work}: holds no plan; give the work folder of a clean"
            ) from error
        settings = QualitySettings.model_validate(raw["settings"])
        return cls(raw["fingerprint"], settings, tuple(Shard(**row) for row in raw["shards"]))


def cut(
    path: Path, name: str, *, held_out: bool = False, converted: bool = False
) -> Iterator[Shard]:
    """Yield the shards of a file, the same for any number of workers."""
    kind = held_out, converted
    with path.open("rb") as file:
        start, first, position, lines = 0, 1, 0, 0
        while line := file.readline(MOST_BYTES):
            position += len(line)
            ended = line.endswith(b"\n")
            lines += ended
            if lines == _MOST_LINES or (ended and position - start > MOST_BYTES):
                yield Shard(str(path), name, start, position, first, *kind)
                start, first, lines = position, first + lines, 0
        if position > start:
            yield Shard(str(path), name, start, position, first, *kind)


def folder_of(work: Path, number: int) -> Path:
    return work / "shards" / f"{number:06}"


def do_shard(work: Path, plan: CleaningPlan, number: int) -> None:
    """Do the shard unless it is there, whole."""
    folder = folder_of(work, number)
    if folder.exists():
        return
    make_folder(folder.parent)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    _write(staging, plan, plan.shards[number])
    for path in staging.iterdir():
        sync_file(path)
    sync_folder(staging)
    try:
        staging.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        shutil.rmtree(staging)  # another worker was quicker, and made the same
    sync_folder(folder.parent)


def read_counts(work: Path, number: int) -> dict[str, Any]:
    """Return what the shard's steps counted: `lines`, and by step `changed` and `reasons`."""
    return json.loads((folder_of(work, number) / COUNTS).read_text(encoding="utf-8"))


def _outcomes(plan: CleaningPlan, shard: Shard) -> Iterator[LineOutcome]:
    steps = () if shard.held_out else item_steps(plan.settings, identify=True)
    for number, line in lines_of(Path(shard.path), shard.start, shard.end, shard.first):
        outcome = LineOutcome(f"{shard.name}:{number}")
        read_line(line, outcome, held_out=shard.held_out, converted=shard.converted)
        if shard.held_out and outcome.rejected():
            problem = f"{outcome.where}: {outcome.told[-1]['reason']}"
            raise BadInputError(f"{problem} (or take the line out: it could not be held out)")
        yield outcome.run(steps)


def _write(folder: Path, plan: CleaningPlan, shard: Shard) -> None:
    facts: list[tuple[int, ...]] = []
    texts: list[str] = []
    lines, reasons, changed = 0, Counter[tuple[str, str]](), Counter[str]()
    before, kept = Counter[Profile](), Counter[Profile]()
    with (
        (folder / ITEMS).open("wb") as items,
        (folder / REJECTED).open("wb") as rejects,
        (folder / TRACE).open("wb") as trace,
    ):
        for outcome in _outcomes(plan, shard):
            lines += 1
            changed.update(told["step"] for told in outcome.told if "reason" not in told)
            scores = next((told["score"] for told in outcome.told if "score" in told), {})
            profile = profile_of(outcome.item, scores) if outcome.item else None
            if outcome.came and profile:
                same = outcome.came is outcome.item
                before[profile if same else profile_of(outcome.came, scores)] += 1
            trace.write(line_of({"id": outcome.id, "from": outcome.where, "steps": outcome.told}))
            if rejected := outcome.rejected():
                last = outcome.told[-1]
                reasons[last["step"], reason_kind(last["reason"])] += 1
                rejects.write(line_of(rejected.to_json()))
            elif (item := outcome.item) and profile:
                items.write(line_of(item.to_json()))
                kept[profile] += 1
                prompt = prompt_for(item)
                facts.append(facts_of(item, prompt, items.tell()))
                texts.append(prompt.text)
    rows = np.array(facts, FACTS)
    if shard.held_out:
        rows["kind"] = HELD_OUT
    np.save(folder / FACTS_FILE, rows)
    np.save(folder / BANDS, band_keys(texts, plan.settings.near_duplicate))
    counts = {
        "lines": lines,
        "changed": dict(changed),
        "before": _packed(before),
        "kept": _packed(kept),
        "reasons": [[step, kind, count] for (step, kind), count in reasons.items()],
    }
    (folder / COUNTS).write_text(json.dumps(counts, ensure_ascii=False), encoding="utf-8")


def _packed(profiles: Counter[Profile]) -> dict[str, Any]:
    statistics = Statistics(bounded=False)
    for profile, times in profiles.items():
        statistics.count(profile, times)
    return statistics.pack()


def line_of(row: dict[str, Any]) -> bytes:
    """Return the row as a line of JSON."""
    return _ENCODER.encode(row).encode() + b"\n"

"""A data folder: what every verb of `aegis data` leaves, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from aegis.data.records import Item, Pair, Plain, Record, Rejected
from aegis.data.report import Rejects, Statistics, write_report
from aegis.storage.artifact import writing
from aegis.storage.files import to_json

KIND = "data"
FILES: dict[type, str] = {
    Record: "records.jsonl",
    Pair: "pairs.jsonl",
    Plain: "plain.jsonl",
    Rejected: "rejected.jsonl",
}
LOG, STATISTICS = "log.jsonl", "statistics.json"


@dataclass(frozen=True)
class StepOutcome:
    """A line of `log.jsonl`: a step, how many items went in and came out, why the others went."""

    name: str
    version: int
    into: int
    out: int
    reasons: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        shared = {"step": self.name, "version": self.version, "in": self.into, "out": self.out}
        return {**shared, "reasons": self.reasons}


class DataWriter:
    """Write items as they come, each into the file of its kind, and count what they are like.

    Attributes:
        counts: items by kind.
        before: statistics of what came in, by `saw`; where nothing was seen, of what was added.
        after: statistics of what was added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = Counter[str]()
        self.before, self.after, self.rejects = Statistics(), Statistics(), Rejects()
        self._steps: list[dict[str, Any]] = []
        self._files: dict[str, TextIO] = {}

    def saw(self, item: Item) -> None:
        """Count an item as it was before the work."""
        self.before.add(item)

    def add(self, item: Item | Rejected) -> None:
        name = FILES[type(item)]
        self._write(name, item.to_json())
        self.counts[name.removesuffix(".jsonl")] += 1
        if isinstance(item, Rejected):
            self.rejects.add(item)
        else:
            self.after.add(item)

    def log(self, step: StepOutcome) -> None:
        self._write(LOG, step.to_json())
        self._steps.append(step.to_json())

    def _write(self, name: str, row: dict[str, Any]) -> None:
        if name not in self._files:
            path = self.folder / name
            self._files[name] = path.open("w", encoding="utf-8", newline="\n")
        self._files[name].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> None:
        """Write what the folder has beside the items."""
        for name in (FILES[Record], FILES[Rejected], LOG):
            if name not in self._files:
                (self.folder / name).touch()
        before = self.before if self.before.facets else self.after
        statistics = {
            "counts": dict(sorted(self.counts.items())),
            "before": before.to_json(),
            "after": self.after.to_json(),
            "rejected": dict(self.rejects.counts.most_common()),
        }
        reported = {"before": before, "after": self.after, "rejects": self.rejects}
        write_report(self.folder, **reported, steps=self._steps)
        (self.folder / STATISTICS).write_text(to_json(statistics), encoding="utf-8")


@contextlib.contextmanager
def writing_data(target: Path, fingerprint: str) -> Iterator[DataWriter]:
    """Yield a writer whose folder becomes `target` when the block ends well, else vanishes.

    Check `target` by `aegis.storage.artifact.require_output(target, kind=KIND, …)` first.
    """
    with writing(target, kind=KIND, fingerprint=fingerprint) as staging:
        writer = DataWriter(staging)
        with contextlib.closing(writer):
            yield writer
            writer.finish()

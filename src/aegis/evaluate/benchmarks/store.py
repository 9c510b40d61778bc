"""Results of items as they come: on the disk before the next batch is asked, none asked twice."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from aegis.errors import DataError
from aegis.evaluate.results import ItemResult, ModelInfo, TaskInfo
from aegis.runs.database import writing_to
from aegis.storage.files import fingerprint, make_folder

_SCHEMA = """
CREATE TABLE run (key TEXT PRIMARY KEY, model TEXT NOT NULL, task TEXT NOT NULL);
CREATE TABLE item (
    run TEXT NOT NULL REFERENCES run(key), category TEXT NOT NULL, doc_id INTEGER NOT NULL,
    prompt_hash TEXT NOT NULL, item TEXT NOT NULL,
    PRIMARY KEY (run, category, doc_id, prompt_hash)
);
"""


class ItemKey(NamedTuple):
    """What tells an item of a task from all others: a changed prompt is another item."""

    category: str
    doc_id: int
    prompt_hash: str


class ItemStore:
    """The items of any number of models and tasks in one file.

    A run is what one model's content, computed by one engine in one precision, makes of one version
    of a task with so many examples: no other one ever gets its items.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        make_folder(path.parent)

    def items(self, model: ModelInfo, task: TaskInfo) -> dict[ItemKey, ItemResult]:
        """Return what is known of a run.

        Raises:
            DataError: if the file is damaged.
        """
        key = _run_key(model, task)
        try:
            with writing_to(self.path, _SCHEMA) as database:
                rows = database.execute("SELECT item FROM item WHERE run = ?", (key,)).fetchall()
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{self.path}: cannot be read ({error}); move it away and run the command again"
            ) from error
        items = (_read(row[0]) for row in rows)
        return {ItemKey(item.category, item.doc_id, item.prompt_hash): item for item in items}

    def add(self, model: ModelInfo, task: TaskInfo, items: Sequence[ItemResult]) -> None:
        """Put a batch's items on the disk, all of them or none.

        Raises:
            DiskFullError, BadInputError: if the file cannot be written.
        """
        key = _run_key(model, task)
        described = [json.dumps(dataclasses.asdict(side)) for side in (model, task)]
        rows = [
            (key, item.category, item.doc_id, item.prompt_hash, _written(item)) for item in items
        ]
        with writing_to(self.path, _SCHEMA) as database:
            database.execute("INSERT OR IGNORE INTO run VALUES (?, ?, ?)", (key, *described))
            database.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?)", rows)


def _run_key(model: ModelInfo, task: TaskInfo) -> str:
    asked = (task.name, task.version, task.shots, task.harness, task.scoring)
    return fingerprint(model.content, model.engine, model.dtype, *asked)


def _written(item: ItemResult) -> str:
    return json.dumps(dataclasses.asdict(item), ensure_ascii=False)


def _read(text: str) -> ItemResult:
    fields = json.loads(text)
    return ItemResult(**{**fields, "log_probs": tuple(fields["log_probs"])})

"""The seed data that AEGIS ships, all of it written for AEGIS; CARD.md describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from aegis.data.records import Pair, Record, parse_pair, parse_record, read_jsonl

T = TypeVar("T", Record, Pair)
SEED_FOLDER = Path(__file__).parent
SEED_FILES = ("decisions.jsonl", "dialogues.jsonl", "pairs.jsonl", "topics.jsonl")


def seed_records() -> list[Record]:
    """Read the decision records, then the dialogues."""
    return _read("decisions.jsonl", parse_record) + _read("dialogues.jsonl", parse_record)


def seed_pairs() -> list[Pair]:
    """Read the preference pairs."""
    return _read("pairs.jsonl", parse_pair)


def _read(name: str, parse: Callable[..., T]) -> list[T]:
    return read_jsonl(SEED_FOLDER / name, parse, name=f"seed/{name}")[0]

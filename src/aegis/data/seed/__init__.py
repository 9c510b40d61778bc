"""The seed data that AEGIS ships, all of it written for AEGIS; CARD.md describes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from aegis.data.records import Pair, Record, parse_pair, parse_record, read_jsonl

T = TypeVar("T", Record, Pair)
SEED_FOLDER = Path(__file__).parent
_REGISTERS = "registers"


def seed_files(*, registers: bool = False) -> list[Path]:
    """Return every file that is read, those of the other registers included if asked for."""
    names = ["decisions.jsonl", "dialogues.jsonl", "pairs.jsonl"]
    return [folder / name for folder in _folders(registers) for name in names] + [
        SEED_FOLDER / "topics.jsonl"
    ]


def seed_records(*, registers: bool = False) -> list[Record]:
    """Read the decision records, then the dialogues; then those of the other registers."""
    names = ("decisions.jsonl", "dialogues.jsonl")
    return [
        record
        for folder in _folders(registers)
        for name in names
        for record in _read(folder / name, parse_record)
    ]


def seed_pairs(*, registers: bool = False) -> list[Pair]:
    """Read the preference pairs; then those of the other registers."""
    return [
        pair for folder in _folders(registers) for pair in _read(folder / "pairs.jsonl", parse_pair)
    ]


def _folders(registers: bool) -> list[Path]:
    return [SEED_FOLDER, SEED_FOLDER / _REGISTERS] if registers else [SEED_FOLDER]


def _read(path: Path, parse: Callable[..., T]) -> list[T]:
    return read_jsonl(path, parse, name=f"seed/{path.relative_to(SEED_FOLDER).as_posix()}")[0]

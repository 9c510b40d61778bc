"""The seed data that AEGIS ships, all of it written for AEGIS; CARD.md describes it."""

from __future__ import annotations

from pathlib import Path

from aegis.data.records import Pair, Record, parse_pair, parse_record, read_jsonl

FOLDER = Path(__file__).parent
FILES = ("decisions.jsonl", "dialogues.jsonl", "pairs.jsonl", "topics.jsonl")


def seed_records() -> list[Record]:
    """Decision records, then dialogues."""
    files = ("decisions.jsonl", "dialogues.jsonl")
    return [
        record
        for name in files
        for record in read_jsonl(FOLDER / name, parse_record, name=f"seed/{name}")[0]
    ]


def seed_pairs() -> list[Pair]:
    return read_jsonl(FOLDER / "pairs.jsonl", parse_pair, name="seed/pairs.jsonl")[0]

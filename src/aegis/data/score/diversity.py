"""How varied a set is: what each record repeats of the others, distinct-n, and self-BLEU.

Source:
    distinct-n: Li et al., A Diversity-Promoting Objective Function for Neural Conversation Models,
    2016. Self-BLEU: Zhu et al., Texygen, 2018.
"""

from __future__ import annotations

import math
import random
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from aegis.data.clean import normalise
from aegis.data.records import Record
from aegis.data.score.part import ScorePart

_TOKEN = re.compile(r"[a-z0-9]+|[ァ-ヴー]+|[^\sa-z0-9ァ-ヴー]")
_LENGTH = 4
_SLOTS = 1 << 22  # 16 MiB whatever the size of the set
_FREE = 2  # so many records may say the same four words
_SAMPLE = 200


class Phrases:
    """Counts of the runs of four words of a set, in memory that does not grow with the set.

    Two runs share a slot now and then: in a set of 50,000 records of 150 words, every second slot
    is in use, and what is counted too high lowers the diversity of all alike.
    """

    def __init__(self) -> None:
        self._counts = array("I", bytes(4 * _SLOTS))
        self.records = 0

    def add(self, record: Record) -> None:
        """Count each run of a record once."""
        self.records += 1
        for slot in _slots(record):
            self._counts[slot] += 1

    def part(self, record: Record) -> ScorePart:
        """Score a record that was added: 1 where no other says the same."""
        slots = _slots(record)
        if not slots:
            return ScorePart(1.0, "too short to repeat anything")
        counts = [self._counts[slot] for slot in slots]
        value = sum(min(1.0, _FREE / count) for count in counts) / len(counts)
        often = sum(count > _FREE for count in counts) / len(counts)
        return ScorePart(value, f"{often:.0%} of its phrases stand in more than {_FREE} records")


def distinct(records: Iterable[Record], length: int) -> float:
    """Return the share of runs of `length` words that are unlike every other of the set."""
    seen: set[int] = set()
    total = 0
    for record in records:
        for run in _runs(_tokens(_said(record)), length):
            total += 1
            seen.add(zlib.crc32(run.encode()))
    return len(seen) / total if total else 1.0


def self_bleu(records: Sequence[Record], *, seed: int) -> float:
    """Return the mean BLEU-4 of each of at most 200 sampled records against the other ones: near 0
    for a varied set, 1 where all say the same.

    One pass: of each run of words, the two highest counts in a record tell what the others have.
    """
    order = sorted(records, key=lambda record: record.id)
    sample = random.Random(seed).sample(order, min(_SAMPLE, len(order)))
    tokens = [_tokens(_said(record)) for record in sample]
    if len(sample) < 2:
        return 0.0
    logs = [0.0] * len(sample)
    for length in range(1, 5):
        counts = [Counter(_runs(each, length)) for each in tokens]
        first, second = Counter[str](), Counter[str]()
        for own in counts:
            for run, count in own.items():
                if count > first[run]:
                    first[run], second[run] = count, first[run]
                elif count > second[run]:
                    second[run] = count
        for index, own in enumerate(counts):
            matched = sum(
                min(count, second[run] if first[run] == count else first[run])
                for run, count in own.items()
            )
            precision = (matched + 0.1) / (sum(own.values()) + 0.1) if own else 1.0
            logs[index] += math.log(precision) / 4
    return sum(map(math.exp, logs)) / len(logs)


def _said(record: Record) -> str:
    if record.thinking is None:
        return record.prompt
    private = " ".join(text.reveal() for text in record.thinking.bodies().values())
    return f"{private} {record.thinking.public}"


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(normalise(text))


def _runs(tokens: Sequence[str], length: int) -> Iterator[str]:
    for start in range(len(tokens) - length + 1):
        yield " ".join(tokens[start : start + length])


def _slots(record: Record) -> set[int]:
    runs = _runs(_tokens(_said(record)), _LENGTH)
    return {zlib.crc32(run.encode()) % _SLOTS for run in runs}

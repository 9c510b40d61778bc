"""What data is like, before and after: `statistics.json` and `data_report.html`."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aegis.data.personal import mask_everywhere
from aegis.data.records import Item, Pair, Plain, Record, Rejected

REPORT = "data_report.html"
EXAMPLES = 10
_NAMES, _BARS, _SHOWN = 1000, 30, 400
_OTHERS = "(others)"
_LENGTHS = (20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
_FACETS = ("kinds", "languages", "decisions", "domains", "sources", "licences", "models")
_VARIES = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|(?<![\w-])\d+(?:[,.]\d+)*")
_TAIL = re.compile(r" as |: |; |, got | at byte ")


Profile = tuple[tuple[str, ...], str, str, tuple[tuple[str, str], ...]]
"""What is counted of an item: its facets, how long its text and its answer ("" without one) are,
and the tenth that each of its scores lies in."""


def profile_of(item: Item, scores: Mapping[str, float] = {}) -> Profile:
    """Return what is counted of an item, with scores in [0, 1] that a step gave it."""
    decision = item.chosen.decision if isinstance(item, Pair) else None
    decision = item.decision if isinstance(item, Record) else decision
    origin = item.provenance
    facets = (
        _kind(item),
        item.language,
        decision.name if decision is not None else "none",
        item.domain,
        item.source,
        (origin and origin.licence) or "unknown",
        (origin and (origin.model or origin.backend)) or "none",
    )
    text, answer = item.text if isinstance(item, Plain) else item.prompt, _answer(item)
    shares = [*scores.items(), *_shares("", item.extra)]
    tenths = tuple((name, f"0.{min(int(value * 10), 9)}") for name, value in shares)
    return facets, _length(text), _length(answer) if answer else "", tenths


@dataclass
class Statistics:
    """Counts of items, taken one at a time, in an amount of memory that does not grow.

    Args:
        bounded: count names of facets together that come after the first 1000. Without it, as for a
            part of the items, parts put together in their order give what counting all gives.
    """

    facets: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    lengths: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    quality: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    bounded: bool = True

    @classmethod
    def of(cls, items: Iterable[Item]) -> Statistics:
        """Count all of these."""
        statistics = cls()
        for item in items:
            statistics.add(item)
        return statistics

    def add(self, item: Item) -> None:
        self.count(profile_of(item))

    def count(self, profile: Profile, times: int = 1) -> None:
        """Count so many items that are like this; a negative number takes them away again."""
        facets, text, answer, tenths = profile
        for name, value in zip(_FACETS, facets, strict=True):
            self._count_name(name, value, times)
        self.lengths["text or prompt"][text] += times
        if answer:
            self.lengths["answer"][answer] += times
        for name, tenth in tenths:
            self._count_score(name, tenth, times)

    def pack(self) -> dict[str, Any]:
        """Return what `unpack` takes, as JSON."""
        groups = {"facets": self.facets, "lengths": self.lengths, "quality": self.quality}
        return {
            group: {name: dict(counts) for name, counts in of.items()}
            for group, of in groups.items()
        }

    def unpack(self, packed: dict[str, Any]) -> None:
        """Add what was counted of the items that come next."""
        for name, counts in packed["facets"].items():
            for value, times in counts.items():
                self._count_name(name, value, times)
        for name, counts in packed["lengths"].items():
            self.lengths[name].update(counts)
        for name, counts in packed["quality"].items():
            for tenth, times in counts.items():
                self._count_score(name, tenth, times)

    def to_json(self) -> dict[str, Any]:
        counts = {name: dict((+self.facets[name]).most_common()) for name in _FACETS}
        lengths = {name: _in_order(+bins) for name, bins in self.lengths.items()}
        quality = {name: dict(sorted((+bins).items())) for name, bins in self.quality.items()}
        return {**counts, "lengths": lengths, "quality": dict(sorted(quality.items()))}

    def _count_name(self, facet: str, name: str, times: int) -> None:
        if self.bounded:
            _count(self.facets[facet], name, times)
        else:
            self.facets[facet][name] += times

    def _count_score(self, name: str, tenth: str, times: int) -> None:
        if not self.bounded or name in self.quality or len(self.quality) < _BARS:
            self.quality[name][tenth] += times


@dataclass
class Rejects:
    """Rejects by the kind of their reason, with the first examples of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Rejected]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def of(cls, items: Iterable[Rejected]) -> Rejects:
        """Count all of these."""
        rejects = cls()
        for item in items:
            rejects.add(item)
        return rejects

    def add(self, item: Rejected) -> None:
        kind = _count(self.counts, reason_kind(item.reason))
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(item)


def reason_kind(reason: str) -> str:
    """Return the reason without what differs from item to item: names, numbers, the other item.

    Log, report and statistics all count rejects by it.
    """
    return _TAIL.split(_VARIES.sub("…", reason), maxsplit=1)[0]


def write_report(
    folder: Path,
    *,
    before: Statistics,
    after: Statistics,
    rejects: Rejects,
    steps: Sequence[dict[str, Any]] = (),
) -> None:
    """Write `data_report.html`: one file that needs no other, whatever the data says in it."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("data_report.html.j2")
    one, other = before.to_json(), after.to_json()
    facets = [(name.capitalize(), _rows(one[name], other[name])) for name in _FACETS]
    for kind in ("lengths", "quality"):
        names = [*one[kind], *(name for name in other[kind] if name not in one[kind])]
        for name in names:
            bins = (one[kind].get(name, {}), other[kind].get(name, {}))
            title = f"Length of {name}, characters" if kind == "lengths" else f"Quality: {name}"
            facets.append((title, _rows(*bins, ordered=True)))
    counted = [
        (kind, n, _examples(rejects.examples[kind])) for kind, n in rejects.counts.most_common()
    ]
    read = steps[0]["in"] if steps else sum(one["kinds"].values())  # with what was no item
    totals = {"in": read, "out": sum(other["kinds"].values())}
    page = template.render(facets=facets, rejects=counted, steps=steps, totals=totals)
    (folder / REPORT).write_text(page, encoding="utf-8")


@dataclass(frozen=True)
class _Bar:
    name: str
    before: int
    after: int
    share: float  # of the largest, in percent


def _rows(before: dict[str, int], after: dict[str, int], *, ordered: bool = False) -> list[_Bar]:
    names = sorted({*before, *after}, key=lambda name: (-after.get(name, 0), name))
    if ordered:
        names = list(_in_order(Counter(dict.fromkeys(names, 1))))
    largest = max([1, *before.values(), *after.values()])
    bars = [
        _Bar(name, before.get(name, 0), after.get(name, 0), 100 * after.get(name, 0) / largest)
        for name in names
    ]
    if len(bars) <= _BARS or ordered:
        return bars
    rest = bars[_BARS:]
    sums = sum(bar.before for bar in rest), sum(bar.after for bar in rest)
    return [*bars[:_BARS], _Bar(f"{len(rest)} more", *sums, 0)]


def _examples(items: Sequence[Rejected]) -> list[tuple[str, str, str]]:
    shown = []
    for item in items:
        content, _ = mask_everywhere(_without_thinking(item.content))
        text = json.dumps(content, ensure_ascii=False)
        shown.append((item.where, item.reason, text[:_SHOWN] + "…" * (len(text) > _SHOWN)))
    return shown


def _without_thinking(value: Any) -> Any:
    """Leave private thinking out: a report is shown around."""
    if isinstance(value, dict):
        return {k: _without_thinking(part) for k, part in value.items() if k != "thinking"}
    if isinstance(value, list):
        return [_without_thinking(part) for part in value]
    if isinstance(value, str) and re.search('"thinking"|<think-', value):
        return "(a line that holds thinking)"
    return value


def _count(counts: Counter[str], name: str, times: int = 1) -> str:
    name = name if name in counts or len(counts) < _NAMES else _OTHERS
    counts[name] += times
    return name


def _kind(item: Item) -> str:
    if isinstance(item, Record):
        return "record with thinking" if item.thinking else "record"
    return "pair" if isinstance(item, Pair) else "plain"


def _answer(item: Item) -> str | None:
    if isinstance(item, Plain):
        return item.response
    if isinstance(item, Pair):
        return item.chosen.thinking.public
    return item.thinking.public if item.thinking else None


def _length(text: str) -> str:
    below = next((limit for limit in _LENGTHS if len(text) < limit), None)
    return f"< {below:,}" if below else f"≥ {_LENGTHS[-1]:,}"


def _in_order(bins: Counter[str]) -> dict[str, int]:
    return dict(sorted(bins.items(), key=lambda bar: (bar[0][0] == "≥", len(bar[0]), bar[0])))


def _shares(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers from 0 to 1 among the fields that steps add: scores and their parts."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _shares(f"{prefix}.{name}" if prefix else name, part)
    elif isinstance(value, float) and 0 <= value <= 1:
        yield prefix, value

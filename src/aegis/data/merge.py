"""Several files into one data folder or file: by weight, in an order that a seed decides."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aegis.data.folder import KIND, DataWriter, StepOutcome, writing_data
from aegis.data.formats import data_files, read_numbered
from aegis.data.formats.write import FILE_SUFFIXES, write_file, write_hub_folder
from aegis.data.records import Item, Rejected, parse_item
from aegis.errors import BadInputError
from aegis.runs.reporter import bar
from aegis.storage.artifact import require_output, writing
from aegis.storage.files import fingerprint, hash_file, kind_of, partial_of

VERSION = 1
HUB_KIND = "hugging-face"
_LEFT_OUT = "left out by weight"


@dataclass(frozen=True)
class Merge:
    """What goes into one set.

    Args:
        inputs: files and folders, in order.
        weights: of each, the share of its items that is taken.
        seed: decides which, and their order; None keeps the order of the inputs.
    """

    inputs: tuple[Path, ...]
    weights: tuple[float, ...]
    seed: int | None = None

    def fingerprint(self) -> str:
        """Return what the result depends on: contents, not paths."""
        files = [[hash_file(f) for f in data_files(path) if kind_of(f)] for path in self.inputs]
        return fingerprint("convert", VERSION, files, self.weights, self.seed)


def convert_files(
    merge: Merge, output: Path, *, hugging_face: bool, say: Callable[[str], None]
) -> dict[str, int]:
    """Write `output`, whole or not at all, and return the counts by kind.

    A file's rejects go into NAME.rejected.jsonl beside it.

    Raises:
        BadInputError: if `output` cannot be written, or an input cannot be read.
    """
    if output.suffix.lower() in FILE_SUFFIXES and not hugging_face:
        return _to_file(merge, output, say)
    kind = HUB_KIND if hugging_face else KIND
    require_output(output, kind=kind, inputs=merge.inputs)
    if not hugging_face:
        with writing_data(output, merge.fingerprint()) as writer:
            _add_all(merge, writer, say)
        return dict(writer.counts)
    items, counts = _collected(merge, say)
    with writing(output, kind=HUB_KIND, fingerprint=merge.fingerprint()) as staging:
        write_hub_folder(staging, items)
    return counts


def _to_file(merge: Merge, output: Path, say: Callable[[str], None]) -> dict[str, int]:
    rejects = output.with_name(f"{output.name}.rejected.jsonl")
    for path in (output, rejects):
        used = [f.resolve() for given in merge.inputs for f in data_files(given)]
        if path.is_dir() or path.resolve() in used or partial_of(path.resolve()).is_dir():
            raise BadInputError(f"{path}: is a folder or an input; give another file")
    items, counts = _collected(merge, say)
    good = [item for item in items if not isinstance(item, Rejected)]
    if bad := [item for item in items if isinstance(item, Rejected)]:
        write_file(rejects, bad)
        say(f"{len(bad):,} set aside: {rejects}")
    write_file(output, good)
    return counts


def _collected(
    merge: Merge, say: Callable[[str], None]
) -> tuple[list[Item | Rejected], dict[str, int]]:
    items = list(merged(merge, say))
    return items, dict(Counter(type(item).__name__.lower() for item in items))


def _add_all(merge: Merge, writer: DataWriter, say: Callable[[str], None]) -> None:
    reasons = Counter[str]()
    for item in merged(merge, say):
        writer.add(item)
        if isinstance(item, Rejected):
            reasons[_LEFT_OUT if item.reason.startswith(_LEFT_OUT) else "not usable"] += 1
    total = writer.counts.total()
    outcome = StepOutcome("convert", VERSION, total, total - reasons.total(), dict(reasons))
    writer.log(outcome)


def merged(merge: Merge, say: Callable[[str], None] = lambda _: None) -> Iterator[Item | Rejected]:
    """Yield the items in the order that the seed decides, rejects first; on disk in between."""
    chosen = _weighted(merge, say)
    if merge.seed is None:
        yield from chosen
        return
    places: list[tuple[bytes, int]] = []
    with tempfile.TemporaryFile() as file:
        for item in chosen:
            if isinstance(item, Rejected):
                yield item
                continue
            places.append((_rank(merge.seed, "order", item), file.tell()))
            file.write(json.dumps(item.to_json(), ensure_ascii=False).encode() + b"\n")
        places.sort()
        with bar("ordering", len(places)) as advance:
            for _, place in places:
                file.seek(place)
                yield parse_item(json.loads(file.readline()), where="ordering")
                advance()


def _weighted(merge: Merge, say: Callable[[str], None]) -> Iterator[Item | Rejected]:
    """Take of each input about its weight's share: a hash of seed and id decides, so that adding
    an item moves no other."""
    for number, item in read_numbered(merge.inputs, say=say):
        weight = merge.weights[number]
        if isinstance(item, Rejected) or _share(merge.seed, item) < weight:
            yield item
        else:
            yield Rejected.item(item, f"{_LEFT_OUT} {weight:g}")


def _share(seed: int | None, item: Item) -> float:
    return int.from_bytes(_rank(seed, "weight", item)[:6]) / 2**48


def _rank(seed: int | None, use: str, item: Item) -> bytes:
    name = f"{seed or 0}:{use}:{type(item).__name__}:{item.id}"
    return hashlib.sha256(name.encode()).digest()[:16]

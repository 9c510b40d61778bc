"""Several datasets beside the run's own records: read, kept apart from what is held out, each with
its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.config import OWN_RECORDS, Config, DatasetSettings
from aegis.data.clean import near_duplicates, normalise
from aegis.data.personal import mask_everywhere
from aegis.data.records import Pair, Record, Rejected, parse_record, read_jsonl
from aegis.data.split import split_records
from aegis.errors import DataError
from aegis.storage.files import hash_file


@dataclass(frozen=True)
class Dataset:
    """Records to train on; an epoch takes round(weight · n) of the n that fit."""

    name: str
    weight: float
    records: list[Record]


@dataclass(frozen=True)
class Mixture:
    """What SFT learns from and is validated on.

    Args:
        own: the run's own training records, less those that another dataset has with thinking.
        pairs: the run's own pairs, whose chosen sides count as own records.
        others: the datasets of `train.datasets`, in their order there.
        validation: their validation shares, to be added to the run's own.
        facts: name, weight, sha256 and counts of each, for people.
    """

    own: Dataset
    pairs: list[Pair]
    others: list[Dataset]
    validation: list[Record]
    facts: list[dict[str, Any]]


def read_dataset(
    settings: DatasetSettings, *, skip_bad: bool = False
) -> tuple[list[Record], list[Rejected]]:
    """The records of one file, personal data masked, and with `skip_bad` the lines that could not
    be read.

    A record without an id gets its line's number for one, so that nothing depends on where the file
    lies.

    Raises:
        DataError: if the file or a line cannot be used, or an id stands twice.
    """

    def parse(raw: dict[str, Any], *, where: str) -> Record:
        numbered = {"id": f"line {where.rpartition(':')[2]}", **raw}
        return parse_record(mask_everywhere(numbered)[0], where=where)

    records, rejected = read_jsonl(Path(settings.path), parse, skip_bad=skip_bad)
    repeated = [
        name for name, count in Counter(record.id for record in records).items() if count > 1
    ]
    if repeated:
        raise DataError(
            f"{settings.path}: the id {repeated[0]!r} is used more than once; give every record its own"
        )
    return records, rejected


def check_datasets(config: Config) -> None:
    """Every file of `train.datasets` can be read.

    Raises:
        DataError: if one cannot.
    """
    for settings in other_datasets(config):
        read_dataset(settings, skip_bad=config.data.skip_bad)


def other_datasets(config: Config) -> list[DatasetSettings]:
    """The datasets that are files."""
    return [settings for settings in config.train.datasets if settings.path != OWN_RECORDS]


def mixture_identity(config: Config) -> list[Any]:
    """What the mixture adds to a fingerprint: weights and contents, not paths; empty without
    `train.datasets`."""
    if not config.train.datasets:
        return []
    data = config.data
    files = [
        [settings.weight, hash_file(Path(settings.path))] for settings in other_datasets(config)
    ]
    return [
        own_weight(config),
        *files,
        data.skip_bad,
        data.split.validation,
        data.quality.near_duplicate,
    ]


def own_weight(config: Config) -> float:
    """The weight of the run's own records: 1, unless `path: records` gives another."""
    return next(
        (settings.weight for settings in config.train.datasets if settings.path == OWN_RECORDS), 1.0
    )


def mix(
    config: Config,
    *,
    train: Sequence[Record],
    pairs: Sequence[Pair],
    held_out: Sequence[Record],
    say: Callable[[str], None] = lambda _: None,
) -> Mixture:
    """Put the datasets beside the run's own records, so that nothing held out is trained on.

    From each file go: records whose prompt is nearly one that the run holds out; records without
    thinking whose prompt occurs with thinking anywhere in the mixture (there the run's own go,
    too); a validation share, by the rule of the run's own split. Of that share go those whose
    prompt is nearly one that is trained on. Datasets of weight 0 count for nothing.

    Args:
        train, pairs: the run's own.
        held_out: the run's own validation and test records.

    Raises:
        DataError: if nothing is left to train on.
    """
    weight, near = own_weight(config), config.data.quality.near_duplicate
    own, own_pairs = (list(train), list(pairs)) if weight else ([], [])
    used = [settings for settings in other_datasets(config) if settings.weight]
    read = [read_dataset(settings, skip_bad=config.data.skip_bad) for settings in used]
    known = [record.prompt for record in held_out]
    fresh = [_far_from(known, records, near) for records, _ in read]
    thought = {
        normalise(record.prompt)
        for records in (own, *fresh)
        for record in records
        if record.thinking
    }
    thought |= {normalise(pair.prompt) for pair in own_pairs}
    chosen = [_prefer_thinking(records, thought) for records in fresh]
    share = config.data.split.validation
    splits = [
        split_records(records, validation=share, test=0.0, seed=config.seed) for records in chosen
    ]
    own = _prefer_thinking(own, thought)
    trained = [
        record.prompt
        for records in (own, *(split["train"] for split in splits))
        for record in records
    ]
    trained += [pair.prompt for pair in own_pairs]
    validation = [_far_from(trained, split["validation"], near) for split in splits]
    facts: list[dict[str, Any]] = [
        {"name": OWN_RECORDS, "weight": weight, "train": len(own), "pairs": len(own_pairs)}
    ]
    for settings, (records, bad), left, split, checks in zip(
        used, read, fresh, splits, validation, strict=True
    ):
        facts.append(
            {
                "name": Path(settings.path).name,
                "weight": settings.weight,
                "sha256": hash_file(Path(settings.path)),
                "read": len(records),
                "bad_lines": len(bad),
                "near_held_out": len(records) - len(left),
                "without_thinking": len(left) - len(split["train"]) - len(split["validation"]),
                "train": len(split["train"]),
                "validation": len(checks),
            }
        )
        say(
            "dataset "
            + ", ".join(f"{key} {value}" for key, value in facts[-1].items() if key != "sha256")
        )
    others = [
        Dataset(Path(settings.path).name, settings.weight, split["train"])
        for settings, split in zip(used, splits, strict=True)
    ]
    if not any((own, own_pairs, *(dataset.records for dataset in others))):
        raise DataError(
            "train.datasets: nothing is left to train on; give files with other prompts than the held-out ones"
        )
    flat = [record for records in validation for record in records]
    return Mixture(Dataset(OWN_RECORDS, weight, own), own_pairs, others, flat, facts)


def _prefer_thinking(records: Iterable[Record], thought: set[str]) -> list[Record]:
    """Without those whose prompt occurs with thinking, while they have none."""
    return [
        record for record in records if record.thinking or normalise(record.prompt) not in thought
    ]


def _far_from(known: Sequence[str], records: Sequence[Record], threshold: float) -> list[Record]:
    """The records whose prompt is not nearly one of the known."""
    prompts = [*known, *(record.prompt for record in records)]
    count = len(known)
    near = {
        later - count
        for later, earlier in near_duplicates(prompts, threshold=threshold)
        if earlier < count <= later
    }
    return [record for number, record in enumerate(records) if number not in near]

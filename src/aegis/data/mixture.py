"""Several weighted datasets beside the run's own records, kept apart from what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from aegis.config import OWN_RECORDS, Config, DatasetSettings
from aegis.data.clean import SimilarTexts, normalise
from aegis.data.personal import mask_everywhere
from aegis.data.records import Pair, Record, Rejected, check_unique, parse_record, read_jsonl
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
    """Read one file's records, personal data masked, and with `skip_bad` its bad lines.

    A record without an id gets its line's number for one, so that nothing depends on where the file
    lies.

    Raises:
        DataError: if the file or a line cannot be used, or an id stands twice.
    """

    def parse(raw: dict[str, Any], *, where: str) -> Record:
        numbered = {"id": f"line {where.rpartition(':')[2]}", **raw}
        return parse_record(mask_everywhere(numbered)[0], where=where)

    records, rejected = read_jsonl(Path(settings.path), parse, skip_bad=skip_bad)
    check_unique(records, settings.path)
    return records, rejected


def check_datasets(config: Config) -> None:
    """Check that every file of `train.datasets` can be read.

    Raises:
        DataError: if one cannot.
    """
    for settings in _files(config):
        read_dataset(settings, skip_bad=config.data.skip_bad)


def mixture_identity(config: Config) -> list[Any]:
    """Return what the mixture adds to a fingerprint: weights and contents, not paths.

    Empty without `train.datasets`.
    """
    if not config.train.datasets:
        return []
    data = config.data
    return [
        _own_weight(config),
        *([settings.weight, hash_file(Path(settings.path))] for settings in _files(config)),
        data.skip_bad,
        data.split.validation,
        data.quality.near_duplicate,
    ]


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
    weight, near = _own_weight(config), config.data.quality.near_duplicate
    own, own_pairs = (list(train), list(pairs)) if weight else ([], [])
    used = [settings for settings in _files(config) if settings.weight]
    read = [read_dataset(settings, skip_bad=config.data.skip_bad) for settings in used]
    held_out_prompts = [record.prompt for record in held_out]
    fresh = [_without_near(held_out_prompts, records, near) for records, _ in read]
    with_thinking = {normalise(pair.prompt) for pair in own_pairs} | {
        normalise(record.prompt) for record in chain(own, *fresh) if record.thinking
    }
    own = _prefer_thinking(own, with_thinking)
    share, seed = config.data.split.validation, config.seed
    kept = [_prefer_thinking(records, with_thinking) for records in fresh]
    splits = [
        split_records(each, validation=share, test=0.0, seed=seed, near=near) for each in kept
    ]
    trained = [item.prompt for item in chain(own, *(split["train"] for split in splits), own_pairs)]
    validation = [_without_near(trained, split["validation"], near) for split in splits]
    if not trained:
        raise DataError(
            "train.datasets: nothing is left to train on; "
            "give files with other prompts than the held-out ones"
        )
    facts: list[dict[str, Any]] = [
        {"name": OWN_RECORDS, "weight": weight, "train": len(own), "pairs": len(own_pairs)},
        *map(_facts, used, read, fresh, splits, validation),
    ]
    for row in facts[1:]:
        shown = (f"{key} {value}" for key, value in row.items() if key != "sha256")
        say(f"dataset {', '.join(shown)}")
    others = [
        Dataset(Path(settings.path).name, settings.weight, split["train"])
        for settings, split in zip(used, splits, strict=True)
    ]
    own_dataset = Dataset(OWN_RECORDS, weight, own)
    return Mixture(own_dataset, own_pairs, others, list(chain(*validation)), facts)


def _facts(
    settings: DatasetSettings,
    read: tuple[list[Record], list[Rejected]],
    fresh: list[Record],
    split: dict[str, list[Record]],
    validation: list[Record],
) -> dict[str, Any]:
    return {
        "name": Path(settings.path).name,
        "weight": settings.weight,
        "sha256": hash_file(Path(settings.path)),
        "read": len(read[0]),
        "bad_lines": len(read[1]),
        "near_held_out": len(read[0]) - len(fresh),
        "without_thinking": len(fresh) - len(split["train"]) - len(split["validation"]),
        "train": len(split["train"]),
        "validation": len(validation),
    }


def _files(config: Config) -> list[DatasetSettings]:
    """Return the datasets that are files."""
    return [settings for settings in config.train.datasets if settings.path != OWN_RECORDS]


def _own_weight(config: Config) -> float:
    """Return the weight of the run's own records: 1, unless `path: records` gives another."""
    return next(
        (settings.weight for settings in config.train.datasets if settings.path == OWN_RECORDS), 1.0
    )


def _prefer_thinking(records: Iterable[Record], with_thinking: set[str]) -> list[Record]:
    """Drop records without thinking whose prompt occurs with thinking."""
    return [
        record
        for record in records
        if record.thinking or normalise(record.prompt) not in with_thinking
    ]


def _without_near(
    prompts: Sequence[str], records: Sequence[Record], threshold: float
) -> list[Record]:
    """Drop records whose prompt is nearly one of the given."""
    index = SimilarTexts(threshold)
    for number, prompt in enumerate(prompts):
        index.add(number, prompt)
    return [record for record in records if not index.alike(record.prompt)]

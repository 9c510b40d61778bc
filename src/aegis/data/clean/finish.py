"""What follows when all shards are done: the steps over all items, and the data folder."""

from __future__ import annotations

import functools
import json
import mmap
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis.config import QualitySettings
from aegis.data.clean.decisions import FOLDS, DecisionProbe
from aegis.data.clean.near import HELD_OUT, PAIR, PLAIN, RECORD, Prompt
from aegis.data.clean.read import READING
from aegis.data.clean.shards import (
    BANDS,
    FACTS_FILE,
    ITEMS,
    REJECTED,
    TRACE,
    CleaningPlan,
    folder_of,
    line_of,
    read_counts,
)
from aegis.data.clean.steps import item_steps, step_outcomes
from aegis.data.clean.whole import (
    SET_STEPS,
    Aside,
    Whole,
    decision_weights,
    prompt_for,
    set_aside_copies,
    set_aside_rest,
)
from aegis.data.folder import FILES, LOG, STATISTICS, StepOutcome
from aegis.data.records import Pair, Plain, Record, Rejected, parse_item, write_jsonl
from aegis.data.report import Profile, Rejects, Statistics, profile_of, reason_kind, write_report
from aegis.protocol.decisions import Decision
from aegis.storage.files import sync_file, to_json, write_bytes

DISAGREEMENTS = "disagreements.jsonl"
_FILES = {RECORD: FILES[Record], PAIR: FILES[Pair], PLAIN: FILES[Plain]}
Judge = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""Prompts → the four probabilities of each."""
_PROBE, _COPIES, _JUDGED = "probe.npz", "copies.json", "judged.npy"
_MOST_LEARNED, _BATCH, _MOST_MAPPED = 25_000, 256, 32


class Shards:
    """What the shards left, read a line or a column at a time; a few shards' lines stay mapped."""

    def __init__(self, work: Path, plan: CleaningPlan) -> None:
        self.work, self.plan = work, plan
        self.folders = [folder_of(work, number) for number in range(len(plan.shards))]
        parts = [np.load(folder / FACTS_FILE) for folder in self.folders]
        self.facts = np.concatenate(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        self._items = functools.lru_cache(_MOST_MAPPED)(
            lambda shard: _mapped(self.folders[shard] / ITEMS)
        )

    def bands(self) -> Iterator[NDArray[np.uint64]]:
        """Yield the keys of all items, a band at a time."""
        count = np.load(self.folders[0] / BANDS, mmap_mode="r").shape[0]
        for band in range(count):
            parts = (np.load(folder / BANDS, mmap_mode="r")[band] for folder in self.folders)
            yield np.concatenate(list(parts))

    def row(self, number: int) -> dict[str, Any]:
        """Return an item's row."""
        shard = int(np.searchsorted(self.starts, number, side="right")) - 1
        end = int(self.facts["end"][number])
        start = int(self.facts["end"][number - 1]) if number > self.starts[shard] else 0
        return json.loads(self._items(shard)[start:end])

    def prompt(self, number: int) -> Prompt:
        prompt = prompt_for(parse_item(self.row(number), where=str(number)))
        return replace(prompt, kind=HELD_OUT) if self.facts["kind"][number] == HELD_OUT else prompt


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def fold_of(facts: NDArray) -> NDArray[np.int_]:
    """Return the fold of each item; a contrast group is in one."""
    group = np.where(facts["contrast"] == 0, facts["id"], facts["contrast"])
    return (group % np.uint64(FOLDS)).astype(int)


def find_repeated(work: Path, plan: CleaningPlan, *, probe: bool = True) -> None:
    """Find ids that stand twice and copies, and train the judges of the decisions, if need be.

    Args:
        probe: whether decisions that are to be checked are checked by a probe.
    """
    if not (work / _COPIES).exists():
        asides = _repeated(Shards(work, plan))
        rows = [[aside.step, aside.number, aside.reason, aside.note] for aside in asides]
        write_bytes(work / _COPIES, json.dumps(rows, ensure_ascii=False).encode())
    if probe and plan.settings.check_decisions and not (work / _PROBE).exists():
        _train(work, Shards(work, plan))


def judge_shard(work: Path, plan: CleaningPlan, number: int, judge: Judge | None = None) -> None:
    """Judge the shard's records, unless that is done.

    Args:
        judge: what judges them; by default the probe that has not seen them, if there is one.
    """
    target = folder_of(work, number) / _JUDGED
    if target.exists() or (judge is None and not (work / _PROBE).stat().st_size):
        return
    facts = np.load(folder_of(work, number) / FACTS_FILE)
    result = np.full((len(facts), len(Decision)), np.nan, np.float32)
    labelled = facts["kind"] == RECORD
    if labelled.any():
        lines = (folder_of(work, number) / ITEMS).read_bytes().splitlines()
        prompts = [json.loads(lines[place])["prompt"] for place in np.flatnonzero(labelled)]
        if judge is None:
            probe = DecisionProbe.load(work / _PROBE)
            result[labelled] = probe.probabilities(prompts, fold_of(facts[labelled]))
        else:
            batches = (prompts[at : at + _BATCH] for at in range(0, len(prompts), _BATCH))
            result[labelled] = [row for batch in batches for row in judge(batch)]
    staging = target.with_name(f".{os.getpid()}.npy")
    np.save(staging, result)
    sync_file(staging)
    staging.replace(target)


def write_result(work: Path, plan: CleaningPlan, folder: Path) -> None:
    """Take the last steps and write the data folder's files."""
    shards = Shards(work, plan)
    facts = shards.facts
    asides = [Aside(*row) for row in json.loads((work / _COPIES).read_text(encoding="utf-8"))]
    alive = facts["kind"] != HELD_OUT
    alive[[aside.number for aside in asides]] = False
    probabilities = _probabilities(shards) if plan.settings.check_decisions else None
    whole = Whole(facts, (), shards.prompt)
    asides += set_aside_rest(whole, alive, plan.settings, probabilities)
    before, after, rejects = Statistics(), Statistics(), Rejects()
    for number, shard in enumerate(plan.shards):
        if not shard.held_out:
            counts = read_counts(work, number)
            before.unpack(counts["before"])
            after.unpack(counts["kept"])
    for profile in _write_items(shards, folder, {aside.number: aside for aside in asides}, rejects):
        after.count(profile, -1)
    _write_disagreements(shards, folder / DISAGREEMENTS, asides)
    log, changed = _log(work, plan, asides)
    steps = [step.to_json() for step in log]
    write_jsonl(folder / LOG, steps)
    write_report(folder, before=before, after=after, rejects=rejects, steps=steps)
    statistics = _statistics(facts, alive, log, plan) | {"changed": changed}
    statistics |= {"before": before.to_json(), "after": after.to_json()}
    (folder / STATISTICS).write_text(to_json(statistics), encoding="utf-8")


def _repeated(shards: Shards) -> list[Aside]:
    facts = shards.facts
    own = np.flatnonzero(facts["kind"] != HELD_OUT)
    _, first = np.unique(facts["id"][own], return_index=True)
    again = np.setdiff1d(own, own[first])
    asides = [
        Aside("ids", int(number), f"the id is used before: {shards.row(int(number))['id']}", {})
        for number in again
    ]
    left = np.setdiff1d(np.arange(len(facts)), again)
    bands = (keys[left] for keys in shards.bands())
    whole = Whole(facts[left], bands, lambda place: shards.prompt(int(left[place])))
    return asides + [
        replace(aside, number=int(left[aside.number]))
        for aside in set_aside_copies(whole, shards.plan.settings.near_duplicate)
    ]


def _train(work: Path, shards: Shards) -> None:
    """Train on at most 25,000 records, picked by their ids; no probe is an empty file."""
    facts = shards.facts
    gone = [row[1] for row in json.loads((work / _COPIES).read_text(encoding="utf-8"))]
    alive = facts["kind"] == RECORD
    alive[gone] = False
    numbers = np.flatnonzero(alive)
    order = np.argsort(facts["id"][numbers] * np.uint64(0x9E3779B97F4A7C15), kind="stable")
    numbers = np.sort(numbers[order[:_MOST_LEARNED]])
    prompts = [shards.row(int(number))["prompt"] for number in numbers]
    labels = facts["decision"][numbers].astype(int)
    probe = DecisionProbe.train(prompts, labels, fold_of(facts[numbers]))
    staging = work / f".{_PROBE}"
    staging.unlink(missing_ok=True)
    probe.save(staging) if probe else staging.touch()
    sync_file(staging)
    staging.replace(work / _PROBE)


def _probabilities(shards: Shards) -> NDArray[np.float32] | None:
    paths = [folder / _JUDGED for folder in shards.folders]
    return np.concatenate([np.load(p) for p in paths]) if all(p.exists() for p in paths) else None


def _write_items(
    shards: Shards, folder: Path, asides: dict[int, Aside], rejects: Rejects
) -> Iterator[Profile]:
    """Write items, rejects and traces shard by shard; most lines are copied as they are.

    Yields:
        what each is like that the steps over all set aside; `rejects` gets it, too.
    """
    names = {*_FILES.values(), FILES[Rejected], TRACE}
    files = {name: (folder / name).open("wb") for name in names}
    for place, shard in enumerate(shards.folders):
        if shards.plan.shards[place].held_out:
            continue
        with (shard / REJECTED).open("rb") as lines:
            for line in lines:
                rejects.add(Rejected(**json.loads(line)))
                files[FILES[Rejected]].write(line)
        number, kinds = int(shards.starts[place]), shards.facts["kind"]
        with (shard / ITEMS).open("rb") as items, (shard / TRACE).open("rb") as traces:
            for trace in traces:
                if b'"reason": ' in trace and "reason" in json.loads(trace)["steps"][-1]:
                    files[TRACE].write(trace)
                    continue
                line = next(items)
                if aside := asides.get(number):
                    told = json.loads(trace)
                    told["steps"].append(aside.to_json())
                    files[TRACE].write(line_of(told))
                    rejected = Rejected(told["id"], aside.reason, json.loads(line))
                    scores = next((note["score"] for note in told["steps"] if "score" in note), {})
                    yield profile_of(parse_item(rejected.content, where=told["from"]), scores)
                    rejects.add(rejected)
                    files[FILES[Rejected]].write(line_of(rejected.to_json()))
                else:
                    files[TRACE].write(trace)
                    files[_FILES[int(kinds[number])]].write(line)
                number += 1
    for name, file in files.items():
        file.close()
        if name in (FILES[Pair], FILES[Plain]) and not (folder / name).stat().st_size:
            (folder / name).unlink()


def _write_disagreements(shards: Shards, path: Path, asides: list[Aside]) -> None:
    """Write what a person has to decide: who labelled it how, and what speaks against it."""
    rows = []
    for aside in asides:
        if aside.step == "decisions" or " with another decision as " in aside.reason:
            row = shards.row(aside.number)
            given = [float(decision.name == row["decision"]) for decision in Decision]
            rows.append(
                {
                    "id": row["id"],
                    "prompt": row["prompt"],
                    "decision": row["decision"],
                    "judged": aside.note.get("judged"),
                    "reason": aside.reason,
                    "probabilities": aside.note.get("probabilities", given),
                }
            )
    path.write_bytes(b"".join(map(line_of, rows)))


def _log(
    work: Path, plan: CleaningPlan, asides: list[Aside]
) -> tuple[list[StepOutcome], dict[str, int]]:
    """Return what each step left and why others went; how many texts the first ones changed."""
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    changed: Counter[str] = Counter()
    lines = 0
    for number, shard in enumerate(plan.shards):
        if shard.held_out:
            continue
        counts = read_counts(work, number)
        lines += counts["lines"]
        changed.update(counts["changed"])
        for step, kind, count in counts["reasons"]:
            reasons[step][kind] += count
    for aside in asides:
        reasons[aside.step][reason_kind(aside.reason)] += 1
    names = ("personal", "text", "toxicity")
    return step_outcomes(step_versions(plan.settings), lines, reasons), {
        n: changed[n] for n in names
    }


def step_versions(settings: QualitySettings) -> list[tuple[str, int]]:
    """Return names and versions of all steps in their order."""
    items = [(step.name, step.version) for step in item_steps(settings, identify=True)]
    return [*READING, *items, *SET_STEPS]


def _statistics(
    facts: NDArray, alive: NDArray[np.bool_], log: list[StepOutcome], plan: CleaningPlan
) -> dict[str, Any]:
    records = alive & (facts["kind"] == RECORD)
    kinds = {name: int((alive & (facts["kind"] == kind)).sum()) for kind, name in _FILES.items()}
    labels = np.bincount(facts["decision"][records].astype(int), minlength=len(Decision))
    statistics = {
        "counts": {
            "in": log[0].into,
            **{name.removesuffix(".jsonl"): count for name, count in kinds.items()},
            "rejected": log[0].into - log[-1].out,
            "held_out": int((facts["kind"] == HELD_OUT).sum()),
        },
        "decisions": {decision.name: int(labels[decision]) for decision in Decision},
        "rejected": {step.name: step.reasons for step in log if step.reasons},
    }
    if plan.settings.balance == "weights":
        statistics["weights"] = decision_weights(facts, alive)
    return statistics

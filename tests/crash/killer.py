"""Kill a training again and again at random instants, resume it each time, and compare its end with
an uninterrupted one.

    python -m tests.crash.killer FOLDER --training ppo --kills 20 --every 0 --seed 0

Imports torch once and forks a process a training, so that the kills fall into the work and not into
imports. Prints JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from aegis.config import LoraSettings, RewardSettings
from aegis.model.adapted import attach
from aegis.storage.snapshots import Kind, Snapshot, SnapshotStore
from aegis.train.reward import EncodedPair, pair_plan, train_reward
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, make_plan, train_sft
from aegis.train.snapshot_policy import SnapshotPolicy
from tests.conftest import tagged_tokenizer, tiny_model
from tests.train.test_ppo import bandit
from tests.train.test_ppo import train as train_ppo
from tests.train.test_preference import dpo, group, policy, timeless
from tests.train.test_sft import encoded, settings
from tests.train.test_state import MODEL

PHASES = ("building", "resuming", "training", "writing", "sealing", "ending")
SAVING = ("writing", "sealing")
PHASE, STEP, ACKNOWLEDGED, RESUMED = range(4)
NOT_YET, ANEW = -2, -1
SETTINGS, LOOP = settings(epochs=2.5), LoopSettings(pad_id=1, seed=3)


def shared_cells() -> memoryview:
    """Four 64-bit numbers that a child writes and that outlive it."""
    return memoryview(mmap.mmap(-1, 32)).cast("q")


class NotingStore(SnapshotStore):
    """Notes when a save begins, when its content is written, and when it is over."""

    cells: memoryview

    def save(
        self, kind: Kind, *, step: int, write: Callable[[Path], None], epoch: int = 0
    ) -> Snapshot:
        def noting(folder: Path) -> None:
            write(folder)
            self.cells[PHASE] = PHASES.index("sealing")

        self.cells[PHASE] = PHASES.index("writing")
        snapshot = super().save(kind, step=step, write=noting, epoch=epoch)
        self.cells[ACKNOWLEDGED] = step
        self.cells[PHASE] = PHASES.index("training")
        return snapshot


class NotingPolicy(SnapshotPolicy):
    """Notes the step from which a training goes on, and every step's end; its clock counts
    steps."""

    store: NotingStore

    def __init__(self, store: NotingStore, *, every: int) -> None:
        self.done = 0
        super().__init__(store, interval_s=every, clock=lambda: float(self.done))

    def step_done(self, step: int, *arguments: Any, **named: Any) -> None:
        self.done += 1
        self.store.cells[STEP] = step
        super().step_done(step, *arguments, **named)

    def restore(self, parts: Any) -> int | None:
        cells = self.store.cells
        cells[PHASE] = PHASES.index("resuming")
        step = super().restore(parts)
        cells[RESUMED] = ANEW if step is None else step
        cells[STEP], cells[PHASE] = step or 0, PHASES.index("training")
        return step


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained: its number of steps, and how to train it to the end and tell the end."""

    steps: int
    run: Callable[[SnapshotPolicy], dict[str, Any]]


def supervised() -> Training:
    examples = encoded(tagged_tokenizer())[0]

    def run(snapshots: SnapshotPolicy) -> dict[str, Any]:
        torch.manual_seed(0)
        adapted = attach(tiny_model(), MODEL)
        data = SupervisedData(examples, examples[:8])
        trained = train_sft(adapted, data, SETTINGS, LOOP, TrainServices(snapshots=snapshots))
        logits, truth = trained.held_out or (None, None)
        return {
            "weights": digests(adapted),
            "history": [{**dataclasses.asdict(log), "seconds": None} for log in trained.history],
            "validation": trained.validation,
            "held_out": [found.tolist() for found in (logits, truth) if found is not None],
        }

    return Training(len(make_plan(examples, SETTINGS, seed=3)[0]), run)


def rewarded() -> Training:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(20, 90, (24, 2, 12), generator=generator).tolist()
    pairs = [EncodedPair((*chosen, 7), tuple(rejected), 1) for chosen, rejected in rows]
    given = RewardSettings(epochs=4, batch_tokens=72, lora=LoraSettings(rank=2, layers=(0.5, 1.0)))

    def run(snapshots: SnapshotPolicy) -> dict[str, Any]:
        torch.manual_seed(0)
        adapted = attach(tiny_model(), MODEL)
        adapted.add_reference()
        adapted.add_reward(given.lora)
        services = TrainServices(snapshots=snapshots)
        model, report, logs = train_reward(adapted, pairs, pairs[:6], given, LOOP, services)
        history = [{**dataclasses.asdict(log), "seconds": None} for log in logs]
        return {
            "weights": digests(adapted),
            "head": digests(model.head),
            "history": history,
            "report": repr(report),
        }

    return Training(len(pair_plan(pairs, given, seed=3)), run)


def optimized() -> Training:
    given: dict[str, Any] = {"updates": 8, "epochs": 2}

    def run(snapshots: SnapshotPolicy) -> dict[str, Any]:
        ppo = bandit(**given)
        logs = timeless(train_ppo(ppo, TrainServices(snapshots=snapshots)))
        return {
            "weights": digests(ppo.adapted),
            "value": digests(ppo.value),
            "history": json.loads(json.dumps(logs)),
        }

    return Training(bandit(**given).steps, run)


def preferred() -> Training:
    def run(snapshots: SnapshotPolicy) -> dict[str, Any]:
        adapted = policy()
        logs = dpo(adapted, snapshots=snapshots)
        return {"weights": digests(adapted), "history": json.loads(json.dumps(timeless(logs)))}

    return Training(len(dpo(policy())), run)


def compared(algorithm: str) -> Training:
    updates = 12

    def run(snapshots: SnapshotPolicy) -> dict[str, Any]:
        adapted = policy()
        logs = group(algorithm, adapted, snapshots=snapshots, updates=updates, beta=0.1)
        return {"weights": digests(adapted), "history": json.loads(json.dumps(timeless(logs)))}

    return Training(updates, run)


TRAININGS: dict[str, Callable[[], Training]] = {
    "sft": supervised,
    "reward": rewarded,
    "ppo": optimized,
    "dpo": preferred,
    "grpo": functools.partial(compared, "grpo"),
    "rloo": functools.partial(compared, "rloo"),
}


def train(training: Training, folder: Path, result: Path, cells: memoryview, *, every: int) -> None:
    """Train to the end, saving after every so many steps (0 and 1: each), and write the end as
    JSON."""
    store = NotingStore(
        folder, fingerprint="crash", keep=3, say=lambda line: print(line, file=sys.stderr)
    )
    store.cells = cells
    end = training.run(NotingPolicy(store, every=every))
    cells[PHASE] = PHASES.index("ending")
    staging = result.with_suffix(".writing")
    staging.write_text(json.dumps(end), encoding="utf-8")
    staging.rename(result)


def digests(module: torch.nn.Module) -> dict[str, str]:
    return {name: digest(tensor) for name, tensor in module.state_dict().items()}


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(
        tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    ).hexdigest()


def fork(work: Callable[[], None], log: Path) -> int:
    """Start a process that does the work and ends; returns its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


@dataclasses.dataclass(frozen=True)
class Aim:
    """When to kill: after `delay_s`, or, where `into_save_s` is given, so long into the first save
    after that."""

    delay_s: float
    into_save_s: float | None


def wait(child: int, aim: Aim | None, cells: memoryview) -> int:
    """The status with which the child ended, by SIGKILL if the aim was met before."""
    due = time.monotonic() + (aim.delay_s if aim else float("inf"))
    waits_for_save = aim is not None and aim.into_save_s is not None
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return status
        now = time.monotonic()
        if waits_for_save and aim and now >= due and PHASES[cells[PHASE]] in SAVING:
            waits_for_save, due = False, now + (aim.into_save_s or 0)
        elif not waits_for_save and now >= due:
            os.kill(child, signal.SIGKILL)
            return os.waitpid(child, 0)[1]
        time.sleep(0.0002 if now >= due else min(0.002, due - now))


@dataclasses.dataclass
class Campaign:
    """The kills over as many trainings as they need.

    Args:
        training: what is trained.
        every: steps between saves.
        kills: of each the phase, the share of the steps done, and whether it left a half-done save
            behind.
        faults: what was not as it must be.
    """

    folder: Path
    training: Training
    every: int
    generator: random.Random
    kills: list[tuple[str, float, bool]] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)
    resumed: int = 0
    runs: int = 0

    def run(self, wanted: int) -> None:
        """Kill `wanted` times; every training begun is then finished and compared."""
        whole, first_s = self._timed("whole")
        again, second_s = self._timed("again")
        if again != whole:
            self.faults.append("two uninterrupted trainings differ")
        longest_s = 0.5 * min(first_s, second_s)
        while len(self.kills) < wanted and not self.faults:
            self.runs += 1
            end = self._training(f"run{self.runs}", longest_s=longest_s, wanted=wanted)
            if end != whole:
                differing = [key for key in whole if end.get(key) != whole[key]]
                self.faults.append(
                    f"run {self.runs}: {differing} differ from the uninterrupted training's"
                )

    def _timed(self, name: str) -> tuple[dict[str, Any], float]:
        begun = time.monotonic()
        return self._training(name, longest_s=0, wanted=0), time.monotonic() - begun

    def _training(self, name: str, *, longest_s: float, wanted: int) -> dict[str, Any]:
        """One training, killed until it is done or there have been `wanted` kills in all; returns
        what it ended with."""
        folder, result, log = (
            self.folder / name,
            self.folder / f"{name}.json",
            self.folder / f"{name}.log",
        )
        cells, acknowledged, left = shared_cells(), ANEW, set[str]()
        steps = self.training.steps
        for _ in range(1000):
            cells[PHASE], cells[STEP], cells[ACKNOWLEDGED], cells[RESUMED] = (
                0,
                0,
                acknowledged,
                NOT_YET,
            )
            aim = self._aim(longest_s) if len(self.kills) < wanted else None
            status = wait(
                fork(lambda: train(self.training, folder, result, cells, every=self.every), log),
                aim,
                cells,
            )
            self._check_resumed(name, cells[RESUMED], acknowledged)
            acknowledged, before, left = (
                cells[ACKNOWLEDGED],
                left,
                {path.name for path in folder.glob(".*")},
            )
            if not os.WIFSIGNALED(status):
                break
            self.kills.append((PHASES[cells[PHASE]], cells[STEP] / steps, bool(left - before)))
        text = log.read_text(encoding="utf-8", errors="replace")
        if "is damaged" in text:
            self.faults.append(f"{name}: a kill left a damaged snapshot: {text[-800:]}")
        if (
            left and cells[RESUMED] < steps
        ):  # else the kill fell into the final save, and nothing was saved after it
            self.faults.append(
                f"{name}: half-done saves are still there at the end: {sorted(left)}"
            )
        if not result.exists():
            self.faults.append(f"{name}: did not end: {text[-2000:]}")
            return {}
        shutil.rmtree(folder, ignore_errors=True)
        return json.loads(result.read_text(encoding="utf-8"))

    def _aim(self, longest_s: float) -> Aim:
        """Anywhere, or, every other time, inside a save."""
        into_save_s = self.generator.uniform(0, 0.015) if len(self.kills) % 2 else None
        return Aim(self.generator.uniform(0, longest_s), into_save_s)

    def _check_resumed(self, name: str, resumed: int, acknowledged: int) -> None:
        if resumed == NOT_YET or acknowledged == ANEW:
            return
        self.resumed += 1
        if resumed < acknowledged:
            how = "began anew" if resumed == ANEW else f"resumed at step {resumed}"
            self.faults.append(
                f"{name}: step {acknowledged} was acknowledged, and the next process {how}"
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--training", choices=sorted(TRAININGS), default="sft")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    warnings.filterwarnings(
        "ignore", message=".*multi-threaded.*fork.*", category=DeprecationWarning
    )
    attach(tiny_model(), MODEL)  # whatever is imported late is imported here, once
    training = TRAININGS[options.training]()
    campaign = Campaign(options.folder, training, options.every, random.Random(options.seed))
    campaign.run(options.kills)
    found = {name: getattr(campaign, name) for name in ("kills", "faults", "resumed", "runs")}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

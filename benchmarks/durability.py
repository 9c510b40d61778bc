"""Claim: losing nothing costs next to nothing. Seconds spent in saving, and the way back after
SIGKILL.

Saving. The quickstart's adapter trains on the embedded model, driven by `transformers.Trainer`,
whose own checkpoints are the peer. At every instant at which Trainer saves, both save the same
model, the same optimizer and an equally long log to the same file system and keep equally many; who
goes first changes from round to round. Before each save the disk is given time to finish what came
before, as it has in the 180 s between two saves. Ours is the whole of what a run pays at a step's
end: capture, write, fsync, sha256, rename, reading back, rotation, the row in the session's
database. Trainer's has no fsync and no checksum, and leaves gates, tags and head out (2 % of the
weights); nothing of what it does besides is counted. To be done in minutes, both save after every
step here, and the share is that of one save in the interval of a run, 180 s. `--sync` adds, for
information, what bringing Trainer's files to the disk would take. The first saves warm up until
both sides have something to rotate. Judged: the median save as a share of the interval, and the
ratio of medians.

Restart. A process trains as stage 3 does and saves every step. It is killed as soon as a snapshot
after its third step is acknowledged, and a new one is started on the same folder at once. Measured:
from the kill to the new one's first step, which must be the one after that snapshot, against the
way of the first one from its start in an empty folder to its first step. That way has the linear
probe in it, on `--records` prompts here and on up to 700 in a real run, which makes a real ratio
smaller. The same with no probe at all is judged by the same limit.
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from claims import Claim, median, report
from gate import ratio
from transformers import get_cosine_schedule_with_warmup

from aegis.config import Config, load_config
from aegis.data.records import Record
from aegis.data.seed import seed_records
from aegis.model.adapted import Adapted, attach
from aegis.model.base import resolve_base
from aegis.model.device import pick_device, quick_attention
from aegis.model.tags import add_tags
from aegis.runs.events import Event, Metrics, Reporter
from aegis.runs.record import open_session
from aegis.runs.reporter import bar
from aegis.storage.files import sync_file, sync_folder
from aegis.storage.snapshots import SnapshotStore
from aegis.train.examples import EncodingSettings, encode_all
from aegis.train.job import TrainingData, TrainingJob
from aegis.train.loop import StepLog
from aegis.train.services import LoopSettings, TrainServices
from aegis.train.sft import SupervisedData, SupervisedObjective
from aegis.train.snapshot_policy import SnapshotPolicy
from aegis.train.stage import write_supervised
from aegis.train.state import OptimizerState, Part, RandomState, Values

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
SHARE, SAVING = "% of the time spent in saving", "a save, AEGIS / transformers.Trainer"
RESTART, NO_PROBE = "SIGKILL to next step / cold start", "the same, a cold start without the probe"
OURS, THEIRS, FSYNC, STEP = (
    "a save, AEGIS",
    "a save, Trainer",
    "fsync of Trainer's files",
    "a training step",
)
LIMITS = {SHARE: 0.5, SAVING: 1.0, RESTART: 1.2, NO_PROBE: 1.2}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--saves", type=int, default=16, help="measured saves an arm; 0 leaves this part out"
    )
    parser.add_argument(
        "--restarts",
        type=int,
        default=5,
        help="kills, with and without a probe; 0 leaves this part out",
    )
    parser.add_argument(
        "--records", type=int, default=128, help="records that the killed processes train on"
    )
    parser.add_argument(
        "--logged",
        type=int,
        default=300,
        help="steps in the logs at the first save: late in the quickstart",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs"),
        help="where to write: the file system that is measured",
    )
    parser.add_argument(
        "--sync", action="store_true", help="also the time of fsync on Trainer's files"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-probe", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, records=options.records, with_probe=not options.no_probe)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    claims: list[Claim] = []
    details: dict[str, Any] = {"seconds": {}, "megabytes": {}}
    with tempfile.TemporaryDirectory(prefix="durability_", dir=options.folder) as folder:
        if options.saves:
            measure_saves(Path(folder), options, claims, details)
        if options.restarts:
            measure_restarts(Path(folder), options, claims, details)
    sys.exit(not report(claims, lines=seconds_of(details), json_path=options.json, details=details))


def seconds_of(details: dict[str, Any]) -> list[str]:
    """Return the seconds that the claims are made of, a line each."""
    lines = ["seconds, medians [95 % interval of the median]"]
    for name, (value, low, high) in details["seconds"].items():
        line = f"  {name:38} {value:.3f}  [{low:.3f}, {high:.3f}]"
        if name in details["megabytes"]:
            line += (
                f"  {100 * value / details['interval_s']:.3f} % of {details['interval_s']:.0f} s"
            )
            line += f"  {details['megabytes'][name]:.1f} MB"
        lines.append(line)
    if "interval_s" in details:
        lines.append(
            "here both save after every step; the share is that of a save in the "
            f"{details['interval_s']:.0f} s of a run"
        )
    return lines


def measure_saves(
    folder: Path, options: argparse.Namespace, claims: list[Claim], details: dict[str, Any]
) -> None:
    config = load_config(QUICKSTART)
    warmup, interval_s = config.durable.keep_training + 1, config.durable.interval_s
    found, sizes = train_and_save(
        folder, config, steps=warmup + options.saves, logged=options.logged, sync=options.sync
    )
    seconds = {name: values[warmup:] for name, values in found.items()}
    value, low, high = median(seconds[OURS])
    share = (100 * value / interval_s, 100 * low / interval_s, 100 * high / interval_s)
    claims.append(Claim(SHARE, share, LIMITS[SHARE], options.saves))
    claims.append(
        Claim(SAVING, ratio(seconds[OURS], seconds[THEIRS]), LIMITS[SAVING], options.saves)
    )
    details |= {"saves": options.saves, "interval_s": interval_s}
    details["megabytes"] = {name: size / 1e6 for name, size in sizes.items()}
    details["seconds"] |= {name: median(values) for name, values in seconds.items()}


def train_and_save(
    folder: Path, config: Config, *, steps: int, logged: int, sync: bool
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Train `steps` steps and let both save after each.

    Returns:
        Seconds of every step and save; bytes of the last saves.
    """
    adapted, objective, plan = prepare(config, steps=steps)
    optimizer = objective.optimizer
    scheduler = get_cosine_schedule_with_warmup(optimizer, 0, steps)
    logs = [step_log(number + 1, seconds=2.0) for number in range(logged)]
    save, size = our_save(folder, config, objective, logs)
    trainer = make_trainer(folder / "trainer", config, adapted, optimizer, scheduler, steps=steps)
    its_save, begun = trainer._save_checkpoint, 0.0
    seconds: dict[str, list[float]] = {STEP: [], OURS: [], THEIRS: []} | (
        {FSYNC: []} if sync else {}
    )

    def loss(_model: Any, inputs: dict[str, torch.Tensor], **_: Any) -> torch.Tensor:
        nonlocal begun
        begun = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)  # Trainer does not know the gates and the head
        (batch,) = objective.batches(plan[int(inputs["batch"])])
        return objective.loss(batch, trainer.state.global_step).total

    def both_save(model: Any, trial: Any) -> None:
        seconds[STEP].append(time.perf_counter() - begun)
        done = trainer.state.global_step
        logs.append(step_log(logged + done, seconds=seconds[STEP][-1]))
        trainer.state.log_history = [trainer_log(log) for log in logs]
        arms = {OURS: lambda: save(logged + done), THEIRS: lambda: its_save(model, trial)}
        for name in sorted(arms, reverse=done % 2 == 0):
            wait_for_disk()
            seconds[name].append(timed(arms[name]))
            if sync and name == THEIRS:
                seconds[FSYNC].append(
                    timed(lambda: sync_whole(folder / "trainer" / f"checkpoint-{done}"))
                )
        advance()

    trainer.compute_loss, trainer._save_checkpoint = loss, both_save
    with bar("training and saving", steps) as advance:
        trainer.train()
    last = folder / "trainer" / f"checkpoint-{steps}"
    return seconds, {OURS: size(), THEIRS: sum(path.stat().st_size for path in last.iterdir())}


def make_trainer(
    folder: Path,
    config: Config,
    adapted: Adapted,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    *,
    steps: int,
) -> Any:
    """Build transformers.Trainer on the PEFT model and our optimizer, saving every step."""
    from transformers import (
        Trainer,
        TrainingArguments,
    )  # not at the top: the processes that are timed do not need it
    from transformers.trainer_callback import PrinterCallback

    transformers.utils.logging.set_verbosity_error()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=config.durable.keep_training,
        logging_strategy="no",  # its log is given to it, as long as ours
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=adapted.device.type == "cpu",
    )
    batches: Any = [{"batch": torch.tensor(number)} for number in range(steps)]
    trainer = Trainer(
        model=adapted.peft,
        args=arguments,
        train_dataset=batches,
        data_collator=lambda rows: rows[0],
        optimizers=(optimizer, scheduler),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def prepare(config: Config, *, steps: int) -> tuple[Adapted, SupervisedObjective, list[int]]:
    """Build the quickstart's model and loss, and a fixed set of its batches."""
    base, device = resolve_base(config.base), pick_device()
    model: Any = base.load_model(dtype=torch.float32, attention=quick_attention(device))
    tokenizer, settings = base.load_tokenizer(), config.train
    tags = add_tags(tokenizer, model)
    torch.manual_seed(config.seed)
    adapted = attach(model, config.model, tags=tags).to(device)
    # The tags have made the vocabulary larger, for which PEFT would write the whole embedding with
    # Trainer's checkpoints.
    peft: Any = adapted.peft
    peft.save_pretrained = functools.partial(peft.save_pretrained, save_embedding_layers=False)
    encoding = EncodingSettings.of(config)
    encoding = replace(encoding, thinking_records=steps // 6, thinking_tokens=None)
    examples, _ = encode_all(tokenizer, spread(seed_records(), 32 * steps), [], encoding)
    loop = LoopSettings(pad_id=tokenizer.pad_token_id, seed=config.seed)
    objective = SupervisedObjective(adapted.train(), SupervisedData(examples), settings, loop)
    return adapted, objective, [number % objective.steps for number in range(steps)]


def our_save(
    folder: Path,
    config: Config,
    objective: SupervisedObjective,
    logs: list[StepLog],
) -> tuple[Callable[[int], None], Callable[[], int]]:
    """Return a function that saves as `train_sft` does, and one for its last save's bytes."""
    session = open_session(folder / "aegis", config_fingerprint="benchmark", resume=False)
    store = SnapshotStore(
        session.folder / "snapshots", fingerprint="benchmark", keep=config.durable.keep_training
    )
    sizes: list[int] = []

    def saved(snapshot: Any) -> None:
        session.add_snapshot(
            "training",
            snapshot.folder,
            step=snapshot.step,
            seconds=snapshot.seconds,
            size=snapshot.size,
        )
        sizes.append(snapshot.size)

    snapshots = SnapshotPolicy(store, interval_s=0.0, on_saved=saved)
    parts: dict[str, Part] = {
        **objective.parts(),
        "optimizer": OptimizerState(objective.optimizer),
        "random": RandomState(),
        "steps": Values(lambda: [vars(log) for log in logs], lambda _: None),
    }
    return lambda step: snapshots.step_done(step, parts), lambda: sizes[-1]


def step_log(step: int, *, seconds: float) -> StepLog:
    """Return a step's log with as many digits as a real one."""
    value = 1 / (step + 0.7)
    return StepLog(
        step, value, {"decision": value}, 1000, seconds, value, value, {"alpha": value, "g": value}
    )


def trainer_log(log: StepLog) -> dict[str, float]:
    """Return the same step in Trainer's log."""
    rates = {"grad_norm": log.gradient_norm, "learning_rate": log.learning_rate}
    return {"epoch": log.loss, **rates, "loss": log.loss, "step": log.step}


def wait_for_disk() -> None:
    """Wait until the disk has nothing left to write."""
    getattr(os, "sync", lambda: None)()


def timed(act: Callable[[], None]) -> float:
    """Return the seconds that it takes."""
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


def sync_whole(folder: Path) -> None:
    """Bring a checkpoint to the disk."""
    for path in sorted(folder.iterdir()):
        sync_file(path)
    sync_folder(folder)
    sync_folder(folder.parent)


def measure_restarts(
    folder: Path, options: argparse.Namespace, claims: list[Claim], details: dict[str, Any]
) -> None:
    arms: dict[str, list[tuple[float, float]]] = {RESTART: [], NO_PROBE: []}
    with bar("killing and resuming", 1 + 2 * options.restarts) as advance:
        killed_and_resumed(
            folder / "warmup", records=options.records, with_probe=False
        )  # the libraries are in memory now
        advance()
        for number in range(options.restarts):
            for name in sorted(arms, reverse=number % 2 == 0):
                place = folder / f"restart_{number}_{name == RESTART}"
                arms[name].append(
                    killed_and_resumed(place, records=options.records, with_probe=name == RESTART)
                )
                advance()
    for name, pairs in arms.items():
        cold, resumed = zip(*pairs, strict=True)
        claims.append(Claim(name, ratio(list(resumed), list(cold)), LIMITS[name], len(pairs)))
        suffix = "" if name == RESTART else ", no probe"
        found = {
            f"cold start to first step{suffix}": median(cold),
            f"SIGKILL to next step{suffix}": median(resumed),
        }
        details["seconds"] |= found
    details["restarts"], details["probed_records"] = options.restarts, options.records


def killed_and_resumed(folder: Path, *, records: int, with_probe: bool) -> tuple[float, float]:
    """Time a cold start, and the way from its SIGKILL to its successor's first step."""
    folder.mkdir()
    with open(folder / "log", "w+", encoding="utf-8") as log:
        processes = []
        try:
            begun = time.perf_counter()
            processes.append(start(folder, log, records=records, with_probe=with_probe))
            told = events(processes[0], log)
            until(told, "step", at_least=1)
            cold = time.perf_counter() - begun
            saved = until(told, "saved", at_least=3)
            killed = time.perf_counter()
            processes[0].kill()
            processes.append(start(folder, log, records=records, with_probe=with_probe))
            step = until(events(processes[1], log), "step", at_least=1)
            resumed = time.perf_counter() - killed
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    if step <= saved:
        raise SystemExit(
            f"the snapshot of step {saved} was acknowledged, and after the kill step {step} was "
            "done again"
        )
    return cold, resumed


def start(folder: Path, log: IO[str], *, records: int, with_probe: bool) -> subprocess.Popen[str]:
    arguments = [
        "--work",
        str(folder),
        "--records",
        str(records),
        *([] if with_probe else ["--no-probe"]),
    ]
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=log, text=True
    )


def events(process: subprocess.Popen[str], log: IO[str]) -> Iterator[tuple[str, int]]:
    """Yield what the process reports, as it happens."""
    assert process.stdout
    for line in process.stdout:
        name, _, step = line.partition(" ")
        yield name, int(step)
    log.seek(0)
    raise SystemExit(f"a training process ended by itself:\n{log.read()[-2000:]}")


def until(told: Iterator[tuple[str, int]], wanted: str, *, at_least: int) -> int:
    return next(step for name, step in told if name == wanted and step >= at_least)


def work(folder: Path, *, records: int, with_probe: bool) -> None:
    """Be the process that is killed: SFT from the newest snapshot, saving at every step."""

    def tell(name: str, step: int) -> None:
        print(name, step, flush=True)

    probed = records if with_probe else 0
    overrides = [
        "train.batch_tokens=256",
        "train.thinking_records=0",
        f"train.probe_records={probed}",
    ]
    config = load_config(QUICKSTART, overrides)
    store = SnapshotStore(
        folder / "snapshots", fingerprint="benchmark", keep=config.durable.keep_training
    )
    snapshots = SnapshotPolicy(
        store, interval_s=0.0, on_saved=lambda snapshot: tell("saved", snapshot.step)
    )

    def show(event: Event) -> None:
        if isinstance(event, Metrics):
            tell("step", event.step)

    services = TrainServices(Reporter(show), snapshots)
    job = TrainingJob(folder / "adapter", config, resolve_base(config.base), services)
    data = TrainingData(spread(seed_records(), records), [])
    write_supervised(job, data, origin={"session_id": "benchmark", "records_sha256": ""})


def spread(records: Sequence[Record], count: int) -> list[Record]:
    """Return `count` records from all over the list."""
    return list(records)[:: max(1, len(records) // count)][:count]


if __name__ == "__main__":
    main()

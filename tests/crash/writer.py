"""Play one scenario under ROOT and note in ROOT/acknowledged what has been acknowledged; the tests
run this under strace.

    writer.py SCENARIO ROOT

Ends as `aegis` does: one line on stderr and the error's exit code. "paused" on stdout says that a
full disk was waited for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegis.errors import AegisError, StoppedError
from aegis.runs.record import open_session
from aegis.storage.artifact import writing
from aegis.storage.journal import Journal
from aegis.storage.snapshots import Kind, SnapshotStore

CONFIG, STAGE, FINGERPRINT = "the config", "so8t_ppo_training", "the work"


def note(root: Path, what: object) -> None:
    """`what` is acknowledged, durably; the last line counts. Not by aegis.storage, which is what is
    tested."""
    with (root / "acknowledged").open("a", encoding="ascii") as file:
        file.write(f"{what}\n")
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(root, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def contents(step: int) -> dict[str, str]:
    """What a snapshot of the step holds, by path."""
    return {"state.txt": f"state {step}\n" * 20, "more/deep.txt": f"deeper {step}\n" * 300}


def value(key: str) -> list[str]:
    """What the journal keeps under the key."""
    return [key, "値" * 10]


def write_step(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, text in contents(step).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")

    return write


def paused(_: float) -> None:
    print("paused", flush=True)
    raise StoppedError("stopped while waiting for room")


def make_store(root: Path, *, keep: int) -> SnapshotStore:
    return SnapshotStore(root / "work", fingerprint=FINGERPRINT, keep=keep, say=print, wait=paused)


def save_all(root: Path, steps: list[tuple[Kind, int]], *, keep: int) -> None:
    store = make_store(root, keep=keep)
    for kind, step in steps:
        store.save(kind, step=step, write=write_step(step), epoch=step)
        note(root, step)


def save(root: Path) -> None:
    save_all(root, [("rolling", 1), ("rolling", 2)], keep=5)


def rotation(root: Path) -> None:
    save_all(
        root, [("rolling", 1), ("epoch", 2), ("rolling", 3), ("epoch", 4), ("final", 5)], keep=2
    )


def replacing(root: Path) -> None:
    """The third save takes the first snapshot away: every kind of call that a save can make."""
    save_all(root, [("rolling", 1), ("rolling", 2), ("rolling", 3)], keep=2)


def emergency(root: Path) -> None:
    """A training saves itself at steps 0 and 1, and in emergency at step 2, for a stop was asked
    for."""
    from aegis.train.snapshot_policy import SnapshotPolicy

    steps: list[int] = []

    def check() -> None:
        if len(steps) == 2:
            raise StoppedError("stopped by SIGTERM")

    checkpoints = SnapshotPolicy(
        make_store(root, keep=5),
        interval_s=0,
        check=check,
        on_saved=lambda snapshot: note(root, snapshot.step),
    )
    parts = training_parts(steps)
    checkpoints.begin(parts)
    try:
        for step in (1, 2):
            steps.append(step)
            checkpoints.step_done(step, training_parts(steps))
    except StoppedError:
        return
    raise RuntimeError("the stop was not heeded")


def training_parts(steps: list[int]) -> dict[str, Any]:
    """A training's state after these steps: tensors that tell the step, generators, the steps
    themselves."""
    import torch

    from aegis.train.state import ModuleState, RandomState, Values

    module = torch.nn.Linear(30, 20)
    torch.nn.init.constant_(module.weight, len(steps))
    torch.nn.init.constant_(module.bias, -len(steps))

    def refill(found: list[int]) -> None:
        steps[:] = found

    return {
        "module": ModuleState(module),
        "random": RandomState(),
        "steps": Values(lambda: steps, refill),
    }


def artifact(root: Path) -> None:
    for number in (1, 2):
        with writing(root / "work" / "artifact", kind="thing", fingerprint=str(number)) as staging:
            write_step(number)(staging)
        note(root, number)


def journal(root: Path) -> None:
    kept = Journal(root / "work" / "journal.jsonl")
    for key in "abc":
        kept(key, lambda key=key: value(key))
        note(root, key)


def session(root: Path) -> None:
    record = open_session(root / "work", config_fingerprint=CONFIG, resume=True)
    note(root, "opened")
    record.take_over({"argv": ["run", "x.yaml"], "cwd": "."})
    note(root, "taken")
    record.stage = STAGE
    record.save()
    note(root, "saved")
    record.add_snapshot(
        STAGE, record.folder / "work" / "checkpoint_final", step=7, seconds=0.1, size=10
    )
    note(root, "snapshot")


def fallback(root: Path) -> None:
    """The newest snapshot is damaged, so the one before is taken up, and the next save has a lower
    step."""
    save_all(root, [("rolling", 10), ("rolling", 20), ("rolling", 30)], keep=5)
    note(root, 20)
    store = make_store(root, keep=2)
    damaged = max((root / "work").glob("checkpoint_rolling_00000030_*")) / "state.txt"
    descriptor = os.open(damaged, os.O_WRONLY)
    os.pwrite(descriptor, b"S", 0)
    os.close(descriptor)
    found = store.newest()
    if found is None or found.step != 20:
        raise RuntimeError(f"fell back to {found}")
    store.save("rolling", step=25, write=write_step(25))
    note(root, 25)


def audited(number: int) -> Any:
    """The request that the audit log's scenario has under the number."""
    from aegis.audit import AuditEntry
    from aegis.protocol.thinking import PrivateText

    sections = {"task": PrivateText("値" * 10)} if number % 2 else {}
    return AuditEntry(
        f"r{number}", "user", "ALLOW", False, "m", "query", sections, f"final {number}", "answered"
    )


def audit(root: Path) -> None:
    """Records over several files, blocks of salts, two masters and two processes; the second ends
    without closing."""
    from aegis.audit import AuditKeys, AuditLog, keystore

    keystore.SALT_BLOCK = 2
    keys = AuditKeys.create(root / "work" / "keys")
    with AuditLog.open(root / "work" / "log", keys, segment_bytes=2500) as log:
        for number in (1, 2, 3):
            log.append(audited(number))
            note(root, number)
    log = AuditLog.open(root / "work" / "log", keys.rotated(), segment_bytes=2500)
    for number in (4, 5, 6):
        log.append(audited(number))
        note(root, number)
    os._exit(0)


SCENARIOS: dict[str, tuple[Callable[[Path], None], str]] = {
    "save": (save, "1 2"),
    "rotation": (rotation, "1 2 3 4 5"),
    "replacing": (replacing, "1 2 3"),
    "emergency": (emergency, "0 1 2"),
    "artifact": (artifact, "1 2"),
    "journal": (journal, "a b c"),
    "session": (session, "opened taken saved snapshot"),
    "audit": (audit, "1 2 3 4 5 6"),
    "fallback": (fallback, "10 20 30 20 25"),
}  # and what each acknowledges, in order


def main() -> int:
    try:
        SCENARIOS[sys.argv[1]][0](Path(sys.argv[2]))
    except AegisError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

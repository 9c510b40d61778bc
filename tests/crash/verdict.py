"""What is wrong with a folder that a scenario left behind: "" if all that was acknowledged is there
and sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

from aegis.errors import AegisError
from aegis.runs.record import newest, open_session
from aegis.storage.artifact import is_current
from aegis.storage.journal import Journal
from aegis.storage.snapshots import SnapshotStore
from tests.crash.writer import CONFIG, FINGERPRINT, STAGE, contents, training_parts, value


def acknowledged(root: Path) -> list[str]:
    """What was acknowledged, in order; a line that the power cut left empty was not."""
    path = root / "acknowledged"
    return path.read_text(encoding="ascii").replace("\0", "").split() if path.exists() else []


def judge(scenario: str, root: Path, *, least: int | None = None) -> str:
    """Take the work up as the next process would.

    Args:
        least: the step that must be there, in place of the acknowledged one.
    """
    try:
        kind = scenario if scenario in _JUDGES else "snapshots"
        return {**_JUDGES, "snapshots": lambda root: _snapshots(root, least=least)}[kind](root)
    except Exception as error:  # whatever is raised, the state that raised it has to be named
        return f"{type(error).__name__}: {error}"


def _snapshots(
    root: Path, *, least: int | None = None, holds: Callable[[Path, int], str] | None = None
) -> str:
    wanted = least if least is not None else int((acknowledged(root) or ["-1"])[-1])
    found = SnapshotStore(root / "work", fingerprint=FINGERPRINT, keep=5).newest()
    if (found.step if found else -1) < wanted:
        newest = f"step {found.step}" if found else "nothing"
        return f"step {wanted} was acknowledged, {newest} is there"
    return (holds or _holds)(found.folder, found.step) if found else ""


def _holds(folder: Path, step: int) -> str:
    wrong = [
        name
        for name, text in contents(step).items()
        if (folder / name).read_text(encoding="utf-8") != text
    ]
    return f"step {step}: {wrong[0]} is not what was written" if wrong else ""


def _holds_training(folder: Path, step: int) -> str:
    from aegis.train.state import read_state

    steps: list[int] = []
    parts = training_parts(steps)
    if read_state(folder, parts) != step or steps != list(range(1, step + 1)):
        return f"{folder.name}: holds {steps}, not step {step}"
    weights = parts["module"].module
    right = bool((weights.weight == step).all() and (weights.bias == -step).all())
    return "" if right else f"{folder.name}: the weights are not those of step {step}"


def _emergency(root: Path) -> str:
    return _snapshots(root, holds=_holds_training)


def _artifact(root: Path) -> str:
    folder, wanted = root / "work" / "artifact", int((acknowledged(root) or ["0"])[-1])
    found = next((number for number in (2, 1) if is_current(folder, str(number))), 0)
    if found < wanted:
        return f"artifact {wanted} was acknowledged, {found or 'nothing'} is there"
    return _holds(folder, found) if found else ""


def _journal(root: Path) -> str:
    found = Journal(root / "work" / "journal.jsonl").values
    if lost := [key for key in acknowledged(root) if key not in found]:
        return f"{lost} were acknowledged, {list(found)} are there"
    wrong = [key for key in found if found[key] != value(key)]
    return f"{wrong} are not what was written" if wrong else ""


def _session(root: Path) -> str:
    notes, runs = acknowledged(root), root / "work"
    before = newest(runs, config_fingerprint=CONFIG) if runs.exists() else None
    if before is None:
        return "an acknowledged session is not there" if notes else ""
    record = open_session(runs, config_fingerprint=CONFIG, resume=True)
    if record.session_id != before.session_id:
        return "another session was begun"
    if "taken" in notes and not record.command:
        return "the take-over is lost"
    record.take_over({})
    if "saved" in notes and record.stage != STAGE:
        return f"the stage is {record.stage}"
    steps = [row["step"] for row in record.rows("snapshots")]
    return f"the snapshots are {steps}" if "snapshot" in notes and steps != [7] else ""


@mock.patch("aegis.audit.keystore.SALT_BLOCK", 2)  # the writer's
def _audit(root: Path) -> str:
    """The server starts, every acknowledged record can be opened, and the log is sound."""
    from aegis.audit import AuditKeys, AuditLog
    from aegis.audit.verify import check, verify

    log, notes = root / "work" / "log", acknowledged(root)
    if not (root / "work" / "keys" / "keys.json").exists():
        return "the keys are lost" if notes else ""
    (root / "work" / "keys" / "keys.json").chmod(0o600)  # the replay does not know of modes
    keys = AuditKeys.load(root / "work" / "keys", {})
    with AuditLog.open(log, keys, segment_bytes=2500) as opened:
        if opened.count < len(notes):
            return f"record {len(notes)} was acknowledged, {opened.count} are there"
    wrong = [
        number for number in notes if not check(log, keys, int(number), "final", f"final {number}")
    ]
    return verify(log, keys=keys).problem or (
        f"record {wrong[0]} is not what was written" if wrong else ""
    )


_JUDGES: dict[str, Callable[[Path], str]] = {
    "emergency": _emergency,
    "artifact": _artifact,
    "journal": _journal,
    "session": _session,
    "audit": _audit,
}


def require_next_save(root: Path) -> None:
    """The next process saves in the same folder as if nothing had been.

    Raises:
        AegisError: if it cannot.
    """
    store = SnapshotStore(root / "work", fingerprint=FINGERPRINT, keep=2)

    def write(folder: Path) -> None:
        (folder / "state.txt").write_text("next", encoding="utf-8")

    store.save("rolling", step=99, write=write)
    found = store.newest()
    left = sorted(path.name for path in (root / "work").glob(".*"))
    if found is None or found.step != 99 or left:
        raise AegisError(f"after the next save {found} is the newest, left over: {left}")

"""Claim: answering nothing unlogged costs an fsync and next to nothing else.

One thread. In turn: a record is appended to an audit log, from the entry to its acknowledgement,
seven texts committed to, chained, signed and synced; and as many bytes as that put on the disk are
written to a plain file and synced. Which of the two goes first changes from round to round. Judged:
the ratio of medians.

Eight threads, as a server has them. Each appends records one after the other, sharing fsyncs.
Judged: a round's time by the number of its records, against the median write + fsync of one thread.
For information: eight threads that each write and sync as many bytes as often on one plain file,
where the kernel shares its journal's commits among them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from claims import Claim, Interval, report
from gate import ratio

from aegis.audit import AuditEntry, AuditKeys, AuditLog
from aegis.audit.reader import segments
from aegis.audit.verify import verify
from aegis.protocol.thinking import SECTIONS, PrivateText

ONE, MANY = (
    "append, one thread / write + fsync",
    "append, 8 threads, by the record / write + fsync, one thread",
)
LIMIT = 1.5
THREADS = 8


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, default=400, help="measured records in one thread")
    parser.add_argument("--rounds", type=int, default=12, help="measured rounds of eight threads")
    parser.add_argument("--each", type=int, default=20, help="records a thread and round")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs"),
        help="where to write: the file system that is measured",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="audit_", dir=options.folder) as folder:
        keys = AuditKeys.create(Path(folder) / "keys")
        descriptor = os.open(Path(folder) / "plain", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        with AuditLog.open(Path(folder) / "log", keys) as log:
            size = bytes_of_a_record(log)
            one = one_thread(log, descriptor, size, rounds=options.records)
            before, records = verify(log.folder, keys=keys).writes, log.count
            many = many_threads(log, descriptor, size, rounds=options.rounds, each=options.each)
            done = log.count - records
            batches = verify(log.folder, keys=keys).writes - before
        os.close(descriptor)
        sound = verify(Path(folder) / "log", keys=keys)
        if not sound.sound or sound.records != log.count:
            raise SystemExit(f"the log that was measured is not sound: {sound.problem}")
    per_round = THREADS * options.each
    ours, plain_ones = ([seconds / per_round for seconds in arm] for arm in many)
    claims = [
        Claim(ONE, ratio(*one), LIMIT, options.records),
        Claim(MANY, against(ours, one[1]), LIMIT, options.rounds),
    ]
    rows = {
        "an append": one[0],
        "a write + fsync": one[1],
        "8 threads' appends, a record": ours,
        "8 threads' writes + fsyncs, a record": plain_ones,
    }
    lines = [
        f"{size} bytes a record with its seal; "
        f"{done / batches:.1f} records of 8 threads shared an fsync; microseconds:"
    ]
    for name, seconds in rows.items():
        low, middle, high = (1e6 * float(value) for value in np.percentile(seconds, (10, 50, 90)))
        lines.append(
            f"  {name:38} median {middle:7.0f}   10 % below {low:7.0f}   10 % above {high:7.0f}"
        )
    details = {"bytes": size, "one": one, "many": many, "records_per_fsync": done / batches}
    sys.exit(not report(claims, lines=lines, json_path=options.json, details=details))


def against(values: list[float], others: list[float]) -> Interval:
    """Return the ratio of two samples' medians with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    draws = [
        np.median(rng.choice(sample, (2000, len(sample))), axis=1) for sample in (values, others)
    ]
    low, high = np.percentile(draws[0] / draws[1], [2.5, 97.5])
    return float(np.median(values) / np.median(others)), float(low), float(high)


def entry(name: str) -> AuditEntry:
    """Make a request as the server has them: a question, four sections, an answer."""
    sections = {
        section: PrivateText(f"{section} {name}: " + "thinking " * 30) for section in SECTIONS
    }
    texts = {
        "query": "What may I do? " * 10 + name,
        "final": "This is what you may do. " * 25 + name,
    }
    facts = {
        "user": "user-17",
        "decision": "ALLOW",
        "escalated": False,
        "model": "model-135m",
        "outcome": "answered",
    }
    return AuditEntry(request_id=name, sections=sections, **texts, **facts)  # type: ignore[arg-type]


def bytes_of_a_record(log: AuditLog) -> int:
    """Measure how many bytes one append adds to the newest file."""
    sizes = []
    for name in ("first", "other"):
        log.append(entry(name))
        sizes.append(len(segments(log.folder)[-1].read_bytes().rstrip(b"\0")))
    return sizes[1] - sizes[0]


def one_thread(
    log: AuditLog, descriptor: int, size: int, *, rounds: int, warmup: int = 20
) -> tuple[list[float], list[float]]:
    """Time every append and every plain write with its fsync, in seconds."""
    seconds: tuple[list[float], list[float]] = ([], [])
    data = os.urandom(size)
    for number in range(rounds + warmup):
        made = entry(f"one-{number}")
        arms: list[Callable[[], object]] = [
            lambda made=made: log.append(made),
            lambda: plain(descriptor, data),
        ]
        for arm in (0, 1) if number % 2 else (1, 0):
            elapsed = timed(arms[arm])
            if number >= warmup:
                seconds[arm].append(elapsed)
    return seconds


def many_threads(
    log: AuditLog, descriptor: int, size: int, *, rounds: int, each: int
) -> tuple[list[float], list[float]]:
    """Time every round of appends and of plain writes, in seconds, without the first."""
    seconds: tuple[list[float], list[float]] = ([], [])
    data = os.urandom(size)
    for number in range(rounds + 1):
        made = [
            [entry(f"many-{number}-{thread}-{step}") for step in range(each)]
            for thread in range(THREADS)
        ]

        def ours(thread: int, made: list[list[AuditEntry]] = made) -> None:
            for item in made[thread]:
                log.append(item)

        def theirs(_: int) -> None:
            for _ in range(each):
                plain(descriptor, data)

        arms = (ours, theirs)
        for arm in (0, 1) if number % 2 else (1, 0):
            elapsed = timed(lambda arm=arm, arms=arms: in_threads(arms[arm]))
            if number:
                seconds[arm].append(elapsed)
    return seconds


def in_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def plain(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    os.fsync(descriptor)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()

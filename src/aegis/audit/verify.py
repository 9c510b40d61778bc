"""Judging a log that nobody is writing: the whole chain, every signature, anchors, and single texts
against a record."""

from __future__ import annotations

import hmac
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aegis.audit.chain import (
    ACCEPTED,
    BEGIN,
    ENTRY,
    ERASED,
    ROTATE,
    UNFINISHED,
    Chain,
    Damage,
    canonical,
    parse,
)
from aegis.audit.entry import commit
from aegis.audit.keys import AuditKeys
from aegis.audit.log import SALTS
from aegis.audit.log_tip import FILE as HEAD
from aegis.audit.log_tip import Head, read_head
from aegis.audit.reader import Scan, fault, find_record, newest_era, scan, segments
from aegis.audit.salts import Salts
from aegis.errors import AuditError
from aegis.storage.files import disk_full_explained, hash_file, sync_file

EXPORT = "aegis audit export v1"


@dataclass(frozen=True)
class Report:
    """What verifying found.

    Args:
        problem: the first thing that is wrong; empty if the log is sound.
        records: sound ones, the newest break behind them.
        checkpoints: signed by the key, for everybody.
        writes: how often something was put on the disk; records that waited together shared one.
        attested: signed by a key that was given; False where none was, and the log's own word had
            to do.
        head: the log was held against the newest acknowledged seal outside it.
        anchors: how many anchors were found in it.
        unfinished_bytes: a record that is being written, or was cut off and never acknowledged.
        breaks: accepted ones; the records before the newest one are held to what they were when it
            was accepted.
        public_keys: that signed, oldest first.
    """

    path: str
    problem: str
    log: str = ""
    newest: int = 0
    records: int = 0
    checkpoints: int = 0
    writes: int = 0
    first_time: str = ""
    last_time: str = ""
    attested: bool = False
    head: bool = False
    anchors: int = 0
    unfinished_bytes: int = 0
    breaks: tuple[dict[str, Any], ...] = ()
    notes: tuple[dict[str, Any], ...] = ()
    public_keys: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        return {"sound": self.sound, **asdict(self)}


class _Collector:
    """Listens to a scan for what a report tells."""

    def __init__(self) -> None:
        self.records, self.first_time, self.last_time = 0, "", ""
        self.breaks: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.public_keys: list[str] = []

    def __call__(self, raw: bytes, found: dict[str, Any]) -> None:
        kind = found["kind"]
        if kind == ENTRY:
            self.records += 1
            self.first_time, self.last_time = self.first_time or found["time"], found["time"]
        elif kind in (BEGIN, ACCEPTED, ROTATE):
            self.public_keys.append(found["public_key"])
        if kind == ACCEPTED:
            self.breaks.append(
                {key: found.get(key) for key in ("after", "time", "reason", "problem")}
            )
        elif kind in (UNFINISHED, ERASED):
            self.notes.append({key: value for key, value in found.items() if key != "prev"})


def verify(
    path: Path,
    *,
    keys: AuditKeys | None = None,
    public_keys: Iterable[str] = (),
    anchors: Sequence[dict[str, Any]] = (),
) -> Report:
    """Follow a log folder or an exported file from its beginning, with every signature.

    Args:
        keys: the owner's; the log is also held against the head in their folder.
        public_keys: trusted ones, in hexadecimal, as an auditor has them.
        anchors: as `anchor` made them and somebody kept them; their keys are trusted too.

    Raises:
        AuditError: if there is no log at the path.
    """
    trusted = {
        *public_keys,
        *(keys.public_keys if keys else ()),
        *(anchor["public_key"] for anchor in anchors),
    }
    return _examine(
        path, keys, frozenset(trusted), [canonical(anchor["checkpoint"]) for anchor in anchors]
    )[0]


def _examine(
    path: Path, keys: AuditKeys | None, trusted: frozenset[str], wanted: Sequence[bytes]
) -> tuple[Report, Scan, list[Path]]:
    exported = path.is_file()
    paths = [path] if exported else segments(path)
    keys = None if exported else keys
    if not paths and (keys is None or not (keys.folder / HEAD).exists()):
        raise AuditError(
            f"{path}: has no audit log; give the folder that the server writes, or an exported file"
        )
    found, told, head = Scan(Chain()), _Collector(), None
    try:
        head = read_head(keys) if keys else None
        if not paths:
            raise AuditError(
                f"there is no log, and {head.after if head else 0} records were acknowledged"
            )
        if exported:
            _require_export(path)
        paths, frozen = paths[(era := 0 if exported else newest_era(paths)) :], paths[:era]
        looked_for = [*wanted, *([head.raw] if head else [])]
        start = Chain(trusted=trusted or None, mac_keys=keys.mac_keys if keys else None)
        found = scan(paths, start, wanted=looked_for, on_line=told, skip_lines=int(exported))
        problem = fault(found, head, keys_given=keys is not None)
        problem = problem or _require_frozen(frozen, paths[0]) or _missing_anchor(found, wanted)
        problem = problem or ("" if found.signed else "it has no signed checkpoint")
    except AuditError as error:
        problem = str(error)
    return (
        _report(
            path, problem, found, told, head=head, anchors=len(found.seen.intersection(wanted))
        ),
        found,
        paths,
    )


def _report(
    path: Path, problem: str, found: Scan, told: _Collector, *, head: Head | None, anchors: int
) -> Report:
    chain = found.chain
    unsigned = 0 if problem else len(found.tail)
    return Report(
        str(path),
        problem,
        log=chain.log,
        newest=chain.after,
        records=told.records,
        checkpoints=found.checkpoints,
        writes=found.writes,
        first_time=told.first_time,
        last_time=told.last_time,
        attested=chain.attested,
        head=head is not None,
        anchors=anchors,
        unfinished_bytes=unsigned,
        breaks=tuple(told.breaks),
        notes=tuple(told.notes),
        public_keys=tuple(told.public_keys),
    )


def _require_frozen(frozen: Sequence[Path], first: Path) -> str:
    """What is wrong with the files before an accepted break: they must be what they were then."""
    if not frozen:
        return ""
    with first.open("rb") as file:
        opening = parse(file.readline().removesuffix(b"\n"))
    files, there = opening["files"], {path.name: path for path in frozen}
    if missing := sorted(set(files) - set(there)):
        return f"{missing[0]}: is gone, and was there when the break after record {opening['after']} was accepted"
    for name, path in there.items():
        if files.get(name) != hash_file(path):
            return (
                f"{name}: was changed since the break after record {opening['after']} was accepted"
            )
    return ""


def _missing_anchor(found: Scan, wanted: Sequence[bytes]) -> str:
    for raw in wanted:
        if raw not in found.seen:
            after = parse(raw).get("after")
            return (
                f"it does not hold the anchor after record {after}: "
                "it was cut off before it, or rewritten, or is another log"
            )
    return ""


def anchor(path: Path, keys: AuditKeys) -> dict[str, Any]:
    """The newest checkpoint and the key that verifies it, to be kept where whoever can write the
    log cannot.

    Raises:
        AuditError: if the log is not sound.
    """
    report, found, _ = _examine(path, keys, keys.public_keys, ())
    _require_sound(report)
    checkpoint = parse(found.signed)
    signer = keys.find(checkpoint["key"])
    assert signer, "a sound log is signed by a known key"
    return {"anchor": 1, "checkpoint": checkpoint, "public_key": signer.public_key}


def read_anchor(path: Path) -> dict[str, Any]:
    """An anchor from a file.

    Raises:
        AuditError: if it is none.
    """
    try:
        found = json.loads(path.read_bytes())
        if found["anchor"] == 1 and len(bytes.fromhex(found["public_key"])) == 32:
            parse(canonical(found["checkpoint"]))
            return found
    except (OSError, ValueError, KeyError, TypeError, Damage):
        pass
    raise AuditError(
        f"{path}: is not an anchor; give a file that `aegis audit anchor -o FILE` wrote"
    )


def export(path: Path, output: Path, *, keys: AuditKeys | None) -> Report:
    """One file of JSON lines that can be verified without anything else: a header, then the chain
    to its newest checkpoint.

    Raises:
        AuditError: if the log is not sound.
    """
    report, found, paths = _examine(path, keys, keys.public_keys if keys else frozenset(), ())
    _require_sound(report)
    if path.is_file():
        raise AuditError(f"{path}: is an exported log already; copy it")
    header = {
        "kind": EXPORT,
        "log": report.log,
        "records": report.records,
        "public_keys": report.public_keys,
    }
    staging = output.with_name(f".{output.name}.writing")
    with disk_full_explained(output):
        try:
            with staging.open("wb") as file:
                file.write(json.dumps(header, separators=(",", ":")).encode() + b"\n")
                newest, end = found.signed_end
                for segment in paths[:newest]:
                    with segment.open("rb") as source:
                        shutil.copyfileobj(source, file)
                with paths[newest].open("rb") as source:
                    file.write(source.read(end))  # what is not yet signed stays behind
            sync_file(staging)
            staging.replace(output)
        finally:
            staging.unlink(missing_ok=True)
    return report


def _require_export(path: Path) -> None:
    with path.open("rb") as file:
        try:
            if json.loads(file.readline(1 << 20))["kind"] == EXPORT:
                return
        except (ValueError, KeyError, TypeError):
            pass
    raise AuditError(f"{path.name}, line 1: is not the header of an exported log")


def _require_sound(report: Report) -> None:
    if not report.sound:
        raise AuditError(
            f"{report.path}: the log is not sound: {report.problem}; look with: aegis audit verify {report.path}"
        )


def check(path: Path, keys: AuditKeys, number: int, name: str, text: str) -> bool:
    """True if the record commits to this very text under the name. It says nothing of the chain:
    verify that too.

    Raises:
        AuditError: if there is no such record or commitment, or its key was erased or is not among
            `keys`.
    """
    record, log = find_record(path, number)
    if name not in record["commitments"]:
        raise AuditError(
            f"record {number} commits to {', '.join(record['commitments'])}, not to {name!r}; name one of these"
        )
    key = record_key(keys, record, log)
    return hmac.compare_digest(record["commitments"][name], commit(key, name, text))


def is_user(keys: AuditKeys, record: dict[str, Any], log: str, user: str) -> bool:
    """True if the record commits to this user; False also where its key was erased."""
    found = record["commitments"].get("user")
    if found is None:
        return False
    try:
        return hmac.compare_digest(found, commit(record_key(keys, record, log), "user", user))
    except AuditError:
        return False


def record_key(keys: AuditKeys, record: dict[str, Any], log: str) -> bytes:
    """The key of a record's commitments.

    Args:
        log: the log's name when the record was written.

    Raises:
        AuditError: if it was erased, or its master is not among `keys`.
    """
    number, master = record["number"], keys.find(record["key"])
    if master is None:
        raise AuditError(
            f"record {number} was made with key {record['key']}, which is not among those given; give that key too"
        )
    salt = Salts(keys.folder / SALTS).find(number)
    if salt is None:
        raise AuditError(
            f"the key of record {number} was erased, so nobody can open it any more; its place in the chain stays"
        )
    return master.record_key(salt, log=log, number=number)

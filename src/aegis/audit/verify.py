"""Check a whole log: its chain, every signature, anchors, and single texts against a record."""

from __future__ import annotations

import hmac
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from aegis.audit.chain import Chain, Kind, Line, LineError, canonical, parse
from aegis.audit.entry import commit
from aegis.audit.keystore import AuditKeys
from aegis.audit.log_tip import TIP_FILE, LogTip, read_log_tip
from aegis.audit.reader import Scan, find_problem, find_record, newest_era, no_log, scan, segments
from aegis.errors import AuditError
from aegis.storage.files import hash_file

EXPORT = "aegis audit export v1"


@dataclass
class VerifyReport:
    """The result of verifying a log.

    Args:
        problem: the first thing that is wrong; empty if the log is sound.
        newest: the number of the newest record.
        records: sound ones after the newest break.
        checkpoints: signed by the key, for everybody.
        writes: how often something was put on the disk; records that waited together shared one.
        attested: signed by a key that was given; False if the log's own word had to do.
        head: the log was compared with the newest acknowledged seal outside it.
        anchors: how many anchors were found in it.
        unfinished_bytes: a record that is being written, or was cut off and never acknowledged.
        breaks: accepted ones; the files before the newest one are as they were then.
        notes: cut-off writes and erasures.
        public_keys: that signed, oldest first.
    """

    path: str
    problem: str = ""
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
    breaks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    public_keys: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        return {"sound": self.sound, **asdict(self)}

    def add_line(self, line: Line) -> None:
        kind = line["kind"]
        if kind == Kind.ENTRY:
            self.records += 1
            self.first_time, self.last_time = self.first_time or line["time"], line["time"]
        elif kind in (Kind.BEGIN, Kind.ACCEPTED, Kind.ROTATE):
            self.public_keys.append(line["public_key"])
        if kind == Kind.ACCEPTED:
            self.breaks.append({key: line[key] for key in ("after", "time", "reason", "problem")})
        elif kind in (Kind.UNFINISHED, Kind.ERASED):
            self.notes.append({key: value for key, value in line.items() if key != "prev"})


def verify(
    path: Path,
    *,
    keys: AuditKeys | None = None,
    public_keys: Iterable[str] = (),
    anchors: Sequence[dict[str, Any]] = (),
) -> VerifyReport:
    """Follow a log folder or an exported file from its beginning, with every signature.

    Args:
        keys: the owner's; the log is also compared with the tip in their folder.
        public_keys: trusted ones, in hexadecimal, as an auditor has them.
        anchors: from `anchor`, kept elsewhere; their keys are trusted too.

    Raises:
        AuditError: if there is no log at the path.
    """
    trusted = {*public_keys, *(anchor["public_key"] for anchor in anchors)}
    trusted |= keys.public_keys if keys else set()
    checkpoints = [canonical(anchor["checkpoint"]) for anchor in anchors]
    return _examine(path, keys, frozenset(trusted), checkpoints)[0]


def _examine(
    path: Path, keys: AuditKeys | None, trusted: frozenset[str], anchors: Sequence[bytes] = ()
) -> tuple[VerifyReport, Scan | None, list[Path]]:
    """Return the report, what reading gave, and the files of the newest era."""
    is_export = path.is_file()
    paths = [path] if is_export else segments(path)
    keys = None if is_export else keys
    if not paths and (keys is None or not (keys.folder / TIP_FILE).exists()):
        raise no_log(path)
    report, result, numbers = VerifyReport(str(path)), None, list[int]()

    def on_line(line: Line) -> None:
        report.add_line(line)
        if line["kind"] == Kind.ENTRY:
            numbers.append(line["number"])

    try:
        tip = read_log_tip(keys) if keys else None
        report.head = tip is not None
        if not paths:
            count = tip.after if tip else 0
            raise AuditError(f"there is no log, and {count} records were acknowledged")
        if is_export:
            _require_export(path)
        era = 0 if is_export else newest_era(paths)
        paths, frozen = paths[era:], paths[:era]
        result = scan(
            paths,
            Chain(trusted=trusted or None, mac_keys=keys.mac_keys if keys else None),
            wanted=[*anchors, *([tip.raw] if tip else [])],
            on_line=on_line,
            has_header=is_export,
        )
        report.log, report.newest = result.chain.log, result.chain.after
        report.checkpoints, report.writes = result.checkpoints, result.writes
        report.attested = result.chain.attested
        report.anchors = len(result.seen.intersection(anchors))
        report.problem = (
            find_problem(result, tip, keys_given=keys is not None)
            or _frozen_problem(frozen, paths[0])
            or _anchor_problem(result, anchors)
            or ("" if result.signed else "it has no signed checkpoint")
            or ("" if keys is None else _keys_problem(keys, tip, report, numbers))
        )
        report.unfinished_bytes = 0 if report.problem else len(result.tail)
    except AuditError as error:
        report.problem = str(error)
    return report, result, paths


def _keys_problem(
    keys: AuditKeys, tip: LogTip | None, report: VerifyReport, numbers: list[int]
) -> str:
    """Return what is missing in the keys folder of a log that is sound in itself."""
    if tip is None:
        return "the keys folder has no head file: nobody can say that no record is missing"
    notes = [note for note in [*report.notes, *keys.read_notes()] if note["kind"] == Kind.ERASED]
    erased = {number for note in notes for number in note["numbers"]}
    if lost := [number for number in keys.salts.find_lost(numbers) if number not in erased]:
        return (
            f"the salts of {len(lost)} record(s), {lost[0]} the first, are gone, cut off or "
            "zeroed, and no note says that they were erased: nobody can open those records"
        )
    keys.salts.require(report.newest + 1)
    return ""


def _frozen_problem(frozen: Sequence[Path], first: Path) -> str:
    """Return how the files before an accepted break differ from what they were then."""
    if not frozen:
        return ""
    with first.open("rb") as file:
        accepted = parse(file.readline().removesuffix(b"\n"))
    hashes, paths = accepted["files"], {path.name: path for path in frozen}
    since = f"the break after record {accepted['after']} was accepted"
    if missing := sorted(set(hashes) - set(paths)):
        return f"{missing[0]}: is gone, and was there when {since}"
    for name, path in paths.items():
        if hashes.get(name) != hash_file(path):
            return f"{name}: was changed since {since}"
    return ""


def _anchor_problem(result: Scan, anchors: Sequence[bytes]) -> str:
    for raw in anchors:
        if raw not in result.seen:
            lacks = f"it does not hold the anchor after record {parse(raw).get('after')}"
            return f"{lacks}: it was cut off before it, or rewritten, or is another log"
    return ""


def _examine_sound(path: Path, keys: AuditKeys | None) -> tuple[VerifyReport, Scan, list[Path]]:
    report, result, paths = _examine(path, keys, keys.public_keys if keys else frozenset())
    if result is None or not report.sound:
        raise AuditError(
            f"{path}: the log is not sound: {report.problem}; look with: aegis audit verify {path}"
        )
    return report, result, paths


def anchor(path: Path, keys: AuditKeys) -> dict[str, Any]:
    """Return the newest checkpoint and its public key, to be kept where no writer of the log can.

    Raises:
        AuditError: if the log is not sound.
    """
    _, result, _ = _examine_sound(path, keys)
    checkpoint = parse(result.signed)
    signer = keys.find(checkpoint["key"])
    assert signer, "a sound log is signed by a known key"
    return {"anchor": 1, "checkpoint": checkpoint, "public_key": signer.public_key}


def read_anchor(path: Path) -> dict[str, Any]:
    """Read an anchor from a file.

    Raises:
        AuditError: if it is none.
    """
    try:
        value = json.loads(path.read_bytes())
        if value["anchor"] == 1 and len(bytes.fromhex(value["public_key"])) == 32:
            parse(canonical(value["checkpoint"]))
            return value
    except (OSError, ValueError, KeyError, TypeError, LineError):
        pass
    raise AuditError(
        f"{path}: is not an anchor; give a file that `aegis audit anchor -o FILE` wrote"
    )


def export(path: Path, output: BinaryIO, *, keys: AuditKeys | None) -> VerifyReport:
    """Write a header and the chain up to its newest checkpoint, which stand alone.

    Raises:
        AuditError: if the log is not sound.
    """
    report, result, paths = _examine_sound(path, keys)
    if path.is_file():
        raise AuditError(f"{path}: is an exported log already; copy it")
    facts = {"log": report.log, "records": report.records, "public_keys": report.public_keys}
    header = json.dumps({"kind": EXPORT, **facts}, separators=(",", ":"))
    newest, end = result.signed_end
    output.write(header.encode() + b"\n")
    for segment in paths[:newest]:
        with segment.open("rb") as source:
            shutil.copyfileobj(source, output)
    with paths[newest].open("rb") as source:
        output.write(source.read(end))  # what is not yet signed stays behind
    return report


def _require_export(path: Path) -> None:
    with path.open("rb") as file:
        try:
            if json.loads(file.readline(1 << 20))["kind"] == EXPORT:
                return
        except (ValueError, KeyError, TypeError):
            pass
    raise AuditError(f"{path.name}, line 1: is not the header of an exported log")


def check(path: Path, keys: AuditKeys, number: int, name: str, text: str) -> bool:
    """Return whether the record commits to this text under the name; the chain is not verified.

    Raises:
        AuditError: if there is no such record or commitment, or its key was erased or is not among
            `keys`.
    """
    record, log = find_record(path, number)
    commitments = record["commitments"]
    if name not in commitments:
        named = f"record {number} commits to {', '.join(commitments)}, not to {name!r}"
        raise AuditError(f"{named}; name one of these")
    return _commits_to(keys, record, log, name, text)


def is_user(keys: AuditKeys, record: Line, log: str, user: str) -> bool:
    """Return whether the record commits to this user; False also if its key was erased."""
    try:
        return _commits_to(keys, record, log, "user", user)
    except (KeyError, AuditError):
        return False


def _commits_to(keys: AuditKeys, record: Line, log: str, name: str, text: str) -> bool:
    number, master = record["number"], keys.find(record["key"])
    if master is None:
        made = f"record {number} was made with key {record['key']}"
        raise AuditError(f"{made}, which is not among those given; give that key too")
    salt = keys.salts.find(number)
    if salt is None:
        erased = f"the key of record {number} was erased, so nobody can open it any more"
        raise AuditError(f"{erased}; its place in the chain stays")
    commitment = commit(master.record_key(salt, log=log, number=number), name, text)
    return hmac.compare_digest(record["commitments"][name], commitment)

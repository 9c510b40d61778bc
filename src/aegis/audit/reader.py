"""Read the files of an audit log: the chain through all segments, and what follows it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aegis.audit.chain import Chain, Kind, Line, LineError, hash_line, parse
from aegis.audit.keystore import AuditKeys
from aegis.audit.log_tip import LogTip
from aegis.errors import AuditError

_NAME = re.compile(r"segment-(\d{6,})\.jsonl")
_LAST_LINE_BYTES = 1 << 16  # more than any checkpoint


def segments(folder: Path) -> list[Path]:
    """Return the log's files in order."""
    paths = [path for path in folder.glob("segment-*.jsonl") if _NAME.fullmatch(path.name)]
    return sorted(paths, key=segment_number)


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:06d}.jsonl"


def segment_number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match.group(1))


@dataclass
class Scan:
    """What reading the files gave. A line is proven if a seal or checkpoint over it is valid.

    Args:
        chain: after the newest proven line.
        sealed: that line, a seal or checkpoint; empty if there is none.
        wanted: seals and checkpoints to look for.
        on_line: called with each proven line.
        seen: the wanted lines that are there.
        end: where `sealed` ends in the last file, in bytes.
        tail: what follows it there, without the zeros at the end, which are room for later records.
        zeros: how many those are.
        problem: why a line of the tail is not the next one; empty if there is no such line.
        torn: the tail is such as a write that was cut off leaves.
        signed: the newest checkpoint; empty if there is none.
        signed_end: the index of its file, and where it ends there.
        writes, checkpoints: seals and checkpoints; checkpoints alone.
    """

    chain: Chain
    sealed: bytes
    wanted: frozenset[bytes]
    on_line: Callable[[Line], None]
    seen: frozenset[bytes]
    end: int = 0
    tail: bytes = b""
    zeros: int = 0
    problem: str = ""
    torn: bool = True
    signed: bytes = b""
    signed_end: tuple[int, int] = (0, 0)
    writes: int = 0
    checkpoints: int = 0

    def read_file(self, path: Path, index: int, *, is_last: bool, has_header: bool) -> None:
        """Follow the chain through a file.

        Raises:
            AuditError: if the file is not the last and does not end with a proven line.
        """
        chain, offset, unproven, self.end = self.chain, 0, list[Line](), 0
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if is_last and not raw.strip(b"\0"):
                    break
                offset += len(raw)
                if has_header and number == 1:
                    self.end = offset
                    continue
                try:
                    if not raw.endswith(b"\n"):
                        raise LineError("is cut off")
                    line, following = chain.read(raw[:-1])
                except LineError as error:
                    place = f"{path.name}, line {number} (record {chain.after} came before it)"
                    self.problem, self.torn = f"{place}: {error}", not raw.endswith(b"\n")
                    break
                unproven.append(line)
                if chain.can_check(line["kind"]):
                    self._prove(unproven, following, raw[:-1], (index, offset))
                    unproven = []
                chain = following
        if not is_last and (self.problem or self.end != offset):
            raise AuditError(
                self.problem or f"{path.name}: does not end with a checkpoint: lines were dropped"
            )

    def _prove(self, lines: list[Line], chain: Chain, raw: bytes, end: tuple[int, int]) -> None:
        self.chain, self.sealed, self.end = chain, raw, end[1]
        self.writes += 1
        self.seen |= self.wanted & {raw}
        if lines[-1]["kind"] == Kind.CHECKPOINT:
            self.checkpoints += 1
            self.signed, self.signed_end = raw, end
        for line in lines:
            self.on_line(line)

    def read_tail(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self.end)
            rest = file.read()
        self.tail = rest.rstrip(b"\0")
        self.zeros = len(rest) - len(self.tail)
        self.torn = self.torn or b"\0" in self.tail


def scan(
    paths: Sequence[Path],
    start: Chain,
    *,
    sealed: bytes = b"",
    wanted: Iterable[bytes] = (),
    on_line: Callable[[Line], None] = lambda line: None,
    has_header: bool = False,
) -> Scan:
    """Follow the chain through the files, from `start` to the newest proven line.

    Args:
        sealed: the line that `start` stands after; empty at the beginning.
        wanted: seals and checkpoints to look for.
        on_line: called with each proven line.
        has_header: the first file has a line in front of the chain.

    Raises:
        AuditError: if a line is not the next one; in the last file, what follows the newest proven
            line becomes `tail` instead.
    """
    wanted = frozenset(wanted)
    result = Scan(start, sealed, wanted, on_line, seen=wanted & {sealed})
    for index, path in enumerate(paths):
        is_last = index == len(paths) - 1
        result.read_file(path, index, is_last=is_last, has_header=has_header and index == 0)
    if paths:
        result.read_tail(paths[-1])
    return result


def find_problem(result: Scan, tip: LogTip | None, *, keys_given: bool) -> str:
    """Return what is wrong with a log that was read to its end; empty if nothing is.

    Args:
        tip: what is known of the log from outside.
        keys_given: there may be a tip; without one nobody can say whether a tail was acknowledged.
    """
    chain, tail = result.chain, result.tail
    if tip and result.sealed and tip.log != chain.log:
        return f"this is log {chain.log}, and the keys folder belongs to log {tip.log}"
    if tip and tip.closed and (zeros := result.zeros):
        return f"{zeros} zeros follow its end, and it was closed in good order: they were added"
    behind = tip is not None and tip.raw not in result.seen
    if tail and not keys_given:
        return result.problem or (
            "lines follow the newest checkpoint and are not signed: its end was cut, or a server "
            "is writing it; verify an export, or give the keys"
        )
    if tail and (behind or not result.torn or (tip and tip.closed)):
        added = "lines follow the newest seal: a seal was dropped, or lines were added"
        return result.problem or added
    if result.sealed and chain.trusted is not None and not chain.attested:
        return f"it is signed by {chain.public_key}, which is none of the keys given"
    if tip and behind and chain.after < tip.after:
        ends = f"it ends with record {chain.after}, and record {tip.after} was acknowledged"
        return f"{ends}: its end was dropped"
    if tip and behind:
        lacks = f"it does not hold what was sealed after record {tip.after}"
        return f"{lacks}: its end was dropped or rewritten"
    if keys_given and tip is None and chain.after:
        lacks = f"the keys folder has no head file, and the log has {chain.after} records"
        return f"{lacks}: nobody can say that none is missing"
    return ""


def newest_era(paths: Sequence[Path]) -> int:
    """Return the index of the file with which the chain begins.

    It is the first file, or the newest that follows an accepted break.
    """
    for index in range(len(paths) - 1, 0, -1):
        with paths[index].open("rb") as file:
            if f'"kind":"{Kind.ACCEPTED}"'.encode() in file.readline(1 << 20):
                return index
    return 0


def resume_from(
    paths: Sequence[Path], keys: AuditKeys, tip: LogTip | None
) -> tuple[int, Chain, bytes]:
    """Return the newest file from which reading reaches the tip.

    Returns:
        The file's index, the chain at its beginning, and the checkpoint there.

    Raises:
        AuditError: if the file before it does not end with a checkpoint signed by one of the keys.
    """
    era, chain = newest_era(paths), Chain(trusted=keys.public_keys, mac_keys=keys.mac_keys)
    for index in range(len(paths) - 1, era, -1):
        resumed, checkpoint = _resume_after(paths[index - 1], chain, keys)
        if tip is None or resumed.after < tip.after or checkpoint == tip.raw:
            return index, resumed, checkpoint
    return era, chain, b""


def _resume_after(path: Path, chain: Chain, keys: AuditKeys) -> tuple[Chain, bytes]:
    """Return the chain after a file that is not the newest, and the checkpoint at its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LAST_LINE_BYTES))
        raw = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
    try:
        line = parse(raw)
        master = keys.find_maker(line) if line["kind"] == Kind.CHECKPOINT else None
        if master is None:
            raise LineError("is not a checkpoint signed by one of these keys")
    except LineError as error:
        raise AuditError(f"{path.name}, last line: {error}") from None
    chain = chain._replace(log=line["log"], after=line["after"], prev=hash_line(raw))
    return chain._replace(public_key=master.public_key, vouched=True, attested=True), raw


def read_newest(folder: Path, keys: AuditKeys, tip: LogTip | None) -> Scan:
    """Read the newest file, whose seals cover all files before it, up to the tip at least.

    Raises:
        AuditError: if it is not sound or ends before the tip.
    """
    paths = segments(folder)
    try:
        if not paths and tip:
            raise AuditError(f"there is no log, and {tip.after} records were acknowledged")
        index, start, sealed = resume_from(paths, keys, tip)
        result = scan(paths[index:], start, sealed=sealed, wanted=[tip.raw] if tip else [])
        if problem := find_problem(result, tip, keys_given=True):
            raise AuditError(problem)
    except AuditError as error:
        raise AuditError(
            f"{folder}: the audit log is not what was acknowledged: {error}. "
            f"Nothing is appended to it; look with: aegis audit verify {folder}"
        ) from None
    return result


def no_log(path: Path) -> AuditError:
    """Return the error for a path where no log is."""
    return AuditError(
        f"{path}: there is no audit log here; `aegis serve` begins one beside its model, in a "
        "folder `audit`. Give that folder, or a file that `aegis audit export` wrote"
    )


def records(folder: Path) -> Iterator[tuple[Line, str]]:
    """Yield each readable record, unverified, in order, with the log's name there."""
    log = ""
    for path in segments(folder):
        with path.open("rb") as file:
            for raw in file:
                with contextlib.suppress(LineError):
                    line = parse(raw.removesuffix(b"\n"))
                    if line["kind"] in (Kind.BEGIN, Kind.ACCEPTED):
                        log = line["log"]
                    elif line["kind"] == Kind.ENTRY:
                        yield line, log


def find_record(folder: Path, number: int) -> tuple[Line, str]:
    """Return the record with the number, and the log's name there.

    Raises:
        AuditError: if there is none.
    """
    if not segments(folder):
        raise no_log(folder)
    for record, log in records(folder):
        if record["number"] == number:
            return record, log
    raise AuditError(
        f"{folder}: has no record {number}; see what there is with: aegis audit show {folder}"
    )

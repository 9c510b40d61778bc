"""Reading the files of an audit log: the chain over all segments, and what stands after the last
signed checkpoint."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.audit.chain import (
    ACCEPTED,
    BEGIN,
    CHECKPOINT,
    ENTRY,
    Chain,
    Damage,
    hash_line,
    is_signed,
    parse,
)
from aegis.audit.keys import AuditKeys
from aegis.audit.log_tip import Head
from aegis.errors import AuditError

_NAME = re.compile(r"segment-(\d{6,})\.jsonl")
_TAIL = 1 << 16  # bytes, more than any checkpoint


def segments(folder: Path) -> list[Path]:
    """The log's files in order."""
    found = [
        (int(match.group(1)), path)
        for path in folder.glob("segment-*.jsonl")
        if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:06d}.jsonl"


def segment_number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match.group(1))


@dataclass
class Scan:
    """What reading found. A line is proven if a seal or checkpoint over it is such as the reader
    can check.

    Args:
        chain: after the newest proven line.
        sealed: that line, a seal or checkpoint; empty if there is none.
        end: where it ends in the last file, in bytes.
        tail: what follows it there, but for zeros at its end, which are room made ahead of records
            to come.
        zeros: how many those are.
        problem: why the tail's first bad line is none; empty if there is no bad line.
        torn: the tail is such as a write that was cut off leaves.
        signed: the newest checkpoint; empty if there is none.
        signed_end: the index of its file, and where it ends there.
        writes, checkpoints: seals and checkpoints; checkpoints alone.
        seen: those of the wanted lines that are there.
    """

    chain: Chain
    sealed: bytes = b""
    end: int = 0
    tail: bytes = b""
    zeros: int = 0
    problem: str = ""
    torn: bool = True
    signed: bytes = b""
    signed_end: tuple[int, int] = (0, 0)
    writes: int = 0
    checkpoints: int = 0
    seen: frozenset[bytes] = frozenset()

    def prove(
        self,
        chain: Chain,
        raw: bytes,
        *,
        index: int,
        end: int,
        signed: bool,
        wanted: frozenset[bytes],
    ) -> None:
        """Everything up to this line is proven."""
        self.chain, self.sealed, self.end = chain, raw, end
        self.writes, self.checkpoints = self.writes + 1, self.checkpoints + signed
        if signed:
            self.signed, self.signed_end = raw, (index, end)
        if raw in wanted:
            self.seen |= {raw}


Line = Callable[[bytes, dict[str, Any]], None]


def scan(
    paths: Sequence[Path],
    start: Chain,
    *,
    sealed: bytes = b"",
    wanted: Iterable[bytes] = (),
    on_line: Line = lambda raw, found: None,
    skip_lines: int = 0,
) -> Scan:
    """Follow the chain through the files, from `start` to the newest proven line.

    Args:
        sealed: the line that `start` stands after; empty at the beginning.
        wanted: seals and checkpoints to look for.
        on_line: told each proven line.
        skip_lines: of the first file, in front of the chain.

    Raises:
        AuditError: if a line is not what the chain asks for; in the last file, what follows the
            newest proven line is reported as `tail` instead.
    """
    looked_for = frozenset(wanted)
    found = Scan(start, sealed, seen=looked_for & {sealed})
    batch: list[tuple[bytes, dict[str, Any]]] = []
    for index, path in enumerate(paths):
        chain, offset, last = found.chain, 0, index == len(paths) - 1
        found.end, found.problem = 0, ""
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if last and not line.strip(b"\0"):
                    break
                offset += len(line)
                if index == 0 and number <= skip_lines:
                    found.end = offset
                    continue
                try:
                    if not line.endswith(b"\n"):
                        raise Damage("is cut off")
                    raw = line[:-1]
                    fields, following = chain.take(raw)
                except Damage as damage:
                    found.problem = f"{path.name}, line {number} (record {chain.after} came before it): {damage}"
                    found.torn = not line.endswith(b"\n")
                    break
                batch.append((raw, fields))
                if chain.proves(kind := fields["kind"]):
                    found.prove(
                        following,
                        raw,
                        index=index,
                        end=offset,
                        signed=kind == CHECKPOINT,
                        wanted=looked_for,
                    )
                    for one in batch:
                        on_line(*one)
                    batch.clear()
                chain = following
        if not last and (found.problem or found.end != offset):
            raise AuditError(
                found.problem or f"{path.name}: does not end with a checkpoint: lines were dropped"
            )
    if paths:
        with paths[-1].open("rb") as file:
            file.seek(found.end)
            left = file.read()
            found.tail = left.rstrip(b"\0")
            found.zeros = len(left) - len(found.tail)
    found.torn = found.torn or b"\0" in found.tail
    return found


def fault(found: Scan, head: Head | None, *, keys_given: bool) -> str:
    """What is wrong with a log that was read to its end; empty if nothing is.

    Args:
        head: what is known of the log from outside.
        keys_given: there may be a head; otherwise nobody can say whether a tail was ever
            acknowledged.
    """
    chain = found.chain
    if head and found.sealed and head.log != chain.log:
        return f"this is log {chain.log}, and the keys folder belongs to log {head.log}"
    if found.zeros and head and head.closed:
        return (
            f"{found.zeros} zeros follow its end, and it was closed in good order: they were added"
        )
    behind = head is not None and head.raw not in found.seen
    if found.tail and not keys_given:
        return found.problem or (
            "lines follow the newest checkpoint and are not signed: its end was cut, or a server is writing it; "
            "verify an export, or give the keys"
        )
    if found.tail and (behind or not found.torn or (head and head.closed)):
        return (
            found.problem or "lines follow the newest seal: a seal was dropped, or lines were added"
        )
    if found.sealed and chain.trusted is not None and not chain.attested:
        return f"it is signed by {chain.public_key}, which is none of the keys given"
    if behind and head:
        if chain.after < head.after:
            return f"it ends with record {chain.after}, and record {head.after} was acknowledged: its end was dropped"
        return f"it does not hold what was sealed after record {head.after}: its end was dropped or rewritten"
    if keys_given and head is None and chain.after:
        return f"the keys folder has no head file, and the log has {chain.after} records: nobody can say that none is missing"
    return ""


def newest_era(paths: Sequence[Path]) -> int:
    """Index of the file with which the chain begins: the first, or the newest that follows an
    accepted break."""
    for index in range(len(paths) - 1, 0, -1):
        with paths[index].open("rb") as file:
            if f'"kind":"{ACCEPTED}"'.encode() in file.readline(1 << 20):
                return index
    return 0


def resume_from(
    paths: Sequence[Path], keys: AuditKeys, head: Head | None
) -> tuple[int, Chain, bytes]:
    """The newest file from which reading finds the head, the chain at its beginning, and the
    checkpoint there.

    Raises:
        AuditError: if the file before it does not end with a checkpoint signed by one of the keys.
    """
    era, fresh = newest_era(paths), Chain(trusted=keys.public_keys, mac_keys=keys.mac_keys)
    for index in range(len(paths) - 1, era, -1):
        chain, checkpoint = _chain_after(paths[index - 1], keys)
        if head is None or chain.after < head.after or checkpoint == head.raw:
            return index, chain, checkpoint
    return era, fresh, b""


def _chain_after(path: Path, keys: AuditKeys) -> tuple[Chain, bytes]:
    """The chain after a file that is not the newest, which ends with a checkpoint."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        raw = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
    try:
        fields = parse(raw)
        signer = keys.find(fields["key"]) if fields["kind"] == CHECKPOINT else None
        if signer is None or not is_signed(fields, signer.public_key):
            raise Damage("is not a checkpoint signed by one of these keys")
    except Damage as damage:
        raise AuditError(f"{path.name}, last line: {damage}") from None
    place = {
        "log": fields["log"],
        "after": fields["after"],
        "prev": hash_line(raw),
        "public_key": signer.public_key,
    }
    return Chain(
        **place, trusted=keys.public_keys, vouched=True, attested=True, mac_keys=keys.mac_keys
    ), raw


def records(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Every record that can be read, in order, with the log's name there; verifying is another
    matter."""
    log = ""
    for path in segments(folder):
        with path.open("rb") as file:
            for line in file:
                with contextlib.suppress(Damage):
                    found = parse(line.removesuffix(b"\n"))
                    if found["kind"] in (BEGIN, ACCEPTED):
                        log = str(found.get("log"))
                    elif found["kind"] == ENTRY:
                        yield found, log


def find_record(folder: Path, number: int) -> tuple[dict[str, Any], str]:
    """The record with the number, and the log's name there.

    Raises:
        AuditError: if there is none.
    """
    found = next((pair for pair in records(folder) if pair[0].get("number") == number), None)
    if found is None:
        raise AuditError(
            f"{folder}: has no record {number}; see what there is with: aegis audit show {folder}"
        )
    return found

"""Reading the files of an audit log: the chain over all segments, and what stands after the last signed checkpoint."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis.errors import AuditError
from aegis.serve.audit.chain import ACCEPTED, BEGIN, CHECKPOINT, ENTRY, Chain, Damage, hash_line, is_signed, parse
from aegis.serve.audit.head import Head
from aegis.serve.audit.keys import AuditKeys

_NAME = re.compile(r"segment-(\d{6,})\.jsonl")
_TAIL = 1 << 16  # bytes, more than any checkpoint


def segments(folder: Path) -> list[Path]:
    """The log's files in order."""
    found = [(int(match.group(1)), path) for path in folder.glob("segment-*.jsonl") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def segment_path(folder: Path, number: int) -> Path:
    return folder / f"segment-{number:06d}.jsonl"


def segment_number(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match
    return int(match.group(1))


@dataclass
class Scan:
    """What reading found.

    Args:
        chain: after the newest checkpoint.
        checkpoint: its line; empty if there is none.
        end: where it ends in the last file, in bytes.
        tail: what follows it there.
        problem: why the tail's first bad line is none; empty if there is no bad line.
        torn: the tail is such as a write that was cut off leaves.
        seen: those of the wanted checkpoints that are there.
    """

    chain: Chain
    checkpoint: bytes = b""
    end: int = 0
    tail: bytes = b""
    problem: str = ""
    torn: bool = True
    checkpoints: int = 0
    seen: set[bytes] = field(default_factory=set)


Line = Callable[[bytes, dict[str, Any]], None]


def scan(
    paths: Sequence[Path],
    start: Chain,
    *,
    wanted: Iterable[bytes] = (),
    every_signature: bool = True,
    on_line: Line = lambda raw, found: None,
    skip_lines: int = 0,
) -> Scan:
    """Follow the chain through the files, from `start` to the newest checkpoint.

    Args:
        wanted: lines of checkpoints to look for.
        every_signature: otherwise only the newest one, which covers everything before it.
        on_line: told each good line, those after the newest checkpoint included.
        skip_lines: of the first file, in front of the chain.

    Raises:
        AuditError: if a line is not what the chain asks for; in the last file, what follows the newest checkpoint is
            reported as `tail` instead.
    """
    looked_for = frozenset(wanted)
    found = Scan(start, seen={raw for raw in looked_for if hash_line(raw) == start.prev})
    signer = ""
    for index, path in enumerate(paths):
        chain, offset, last = found.chain, 0, index == len(paths) - 1
        found.end, found.problem, number = 0, "", 0
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                offset += len(line)
                if index == 0 and number <= skip_lines:
                    found.end = offset
                    continue
                try:
                    if not line.endswith(b"\n"):
                        raise Damage("is cut off")
                    raw = line[:-1]
                    fields, following = chain.take(raw, check_signature=every_signature or bool(chain.next_key))
                except Damage as damage:
                    found.problem = f"{path.name}, line {number} (record {chain.after} came before it): {damage}"
                    found.torn = not line.endswith(b"\n")
                    break
                on_line(raw, fields)
                if fields["kind"] == CHECKPOINT:
                    signer = chain.public_key
                    found.chain, found.checkpoint, found.end = following, raw, offset
                    found.checkpoints += 1
                    if raw in looked_for:
                        found.seen.add(raw)
                chain = following
        if not last and (found.problem or found.end != offset):
            raise AuditError(found.problem or f"{path.name}: does not end with a checkpoint: lines were dropped")
    if paths:
        with paths[-1].open("rb") as file:
            file.seek(found.end)
            found.tail = file.read()
    found.torn = found.torn or b"\0" in found.tail
    if signer and not every_signature and not is_signed(parse(found.checkpoint), signer):
        raise AuditError(f"{paths[-1].name}: the newest checkpoint (record {found.chain.after}) has no valid signature")
    return found


def fault(found: Scan, head: Head | None, *, keys_given: bool) -> str:
    """What is wrong with a log that was read to its end; empty if nothing is.

    Args:
        head: what is known of the log from outside.
        keys_given: there may be a head; otherwise nobody can say whether a tail was ever acknowledged.
    """
    chain = found.chain
    if head and found.checkpoint and head.log != chain.log:
        return f"this is log {chain.log}, and the keys folder belongs to log {head.log}"
    behind = head is not None and head.raw not in found.seen
    if found.tail and (behind or not found.torn or not keys_given or (head and head.closed)):
        return (
            found.problem
            or "lines follow the newest checkpoint without a signature: a checkpoint was dropped, or lines added"
        )
    if found.checkpoint and chain.trusted is not None and not chain.attested:
        return f"it is signed by {chain.public_key}, which is none of the keys given"
    if behind and head:
        if chain.after < head.after:
            return f"it ends with record {chain.after}, and record {head.after} was acknowledged: its end was dropped"
        return f"it does not hold the checkpoint acknowledged after record {head.after}: its end was dropped or rewritten"
    if keys_given and head is None and chain.after:
        return f"the keys folder has no head file, and the log has {chain.after} records: nobody can say that none is missing"
    return ""


def newest_era(paths: Sequence[Path]) -> int:
    """Index of the file with which the chain begins: the first, or the newest that follows an accepted break."""
    for index in range(len(paths) - 1, 0, -1):
        with paths[index].open("rb") as file:
            if f'"kind":"{ACCEPTED}"'.encode() in file.readline(1 << 20):
                return index
    return 0


def resume_from(paths: Sequence[Path], keys: AuditKeys, head: Head | None) -> tuple[int, Chain]:
    """The newest file from which reading finds the head, and the chain at its beginning.

    Raises:
        AuditError: if the file before it does not end with a checkpoint signed by one of the keys.
    """
    era, fresh = newest_era(paths), Chain(trusted=keys.public_keys)
    for index in range(len(paths) - 1, era, -1):
        chain = _chain_after(paths[index - 1], keys)
        if head is None or chain.after <= head.after:
            return index, chain
    return era, fresh


def _chain_after(path: Path, keys: AuditKeys) -> Chain:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        raw = file.read().removesuffix(b"\n").rpartition(b"\n")[2]
    try:
        fields = parse(raw)
        signer = keys.find(fields["key"])
        if fields["kind"] != CHECKPOINT or signer is None or not is_signed(fields, signer.public_key):
            raise Damage("is not a checkpoint signed by one of these keys")
        place = {"log": fields["log"], "after": fields["after"], "prev": hash_line(raw)}
        known = {"trusted": keys.public_keys, "vouched": True, "attested": True}
        return Chain(**place, public_key=signer.public_key, **known)
    except (Damage, KeyError) as damage:
        raise AuditError(f"{path.name}, last line: {damage}") from None


def records(folder: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Every record that can be read, in order, with the log's name there; verifying is another matter."""
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
        raise AuditError(f"{folder}: has no record {number}; see what there is with: aegis audit show {folder}")
    return found

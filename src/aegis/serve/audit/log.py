"""The writer: an answer leaves once its record, and a signed checkpoint over all records so far, are on the disk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis.durable.files import make_folder, sync_folder
from aegis.durable.lock import only_process
from aegis.errors import AuditError, AuditUnavailableError, DiskFullError, is_disk_full
from aegis.serve.audit.chain import ACCEPTED, BEGIN, ENTRY, ROTATE, UNFINISHED, Chain, key_id, parse
from aegis.serve.audit.entry import AuditEntry
from aegis.serve.audit.head import Head, HeadFile, read_head
from aegis.serve.audit.keys import AuditKeys, MasterKey, utc_now
from aegis.serve.audit.notes import add_note, forget, pending
from aegis.serve.audit.private import open_private
from aegis.serve.audit.reading import Scan, fault, resume_from, scan, segment_number, segment_path, segments
from aegis.serve.audit.salts import Salts

SEGMENT_BYTES = 16 << 20
SALTS, ASIDE = "salts", "unfinished"


@dataclass(frozen=True)
class Acceptance:
    """A break that the owner has accepted: from here on a new chain, in a new file.

    Args:
        sequence: of the head so far.
        facts: what the signed line says: `reason`, `problem`, sha256 of every file as it stands.
    """

    log: str
    after: int
    sequence: int
    facts: Mapping[str, Any]


@dataclass
class _Ticket:
    entry: AuditEntry
    number: int = 0
    settled: bool = False
    error: Exception | None = None


class AuditLog:
    """One process's hold on a log. `append` may be called from any thread; those that wait share an fsync.

    Use `open`; leave with `close`, or as a context manager.
    """

    def __init__(self, folder: Path, keys: AuditKeys, *, segment_bytes: int, clock: Callable[[], str]) -> None:
        self.folder, self.keys, self.segment_bytes, self._clock = folder, keys, segment_bytes, clock
        self._salts = Salts(keys.folder / SALTS)
        self._chain, self._checkpoint = Chain(), b""
        self._signer: MasterKey = keys.active
        self._head: HeadFile | None = None
        self._descriptor, self._number, self._size = -1, 0, 0
        self._fresh, self._unsure, self._closed = False, False, True
        self._waiting: list[_Ticket] = []
        self._waiting_lock, self._turn, self._held = threading.Lock(), threading.Lock(), ExitStack()

    @classmethod
    def open(
        cls,
        folder: Path,
        keys: AuditKeys,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        clock: Callable[[], str] = utc_now,
        acceptance: Acceptance | None = None,
    ) -> AuditLog:
        """Take the log up, having verified its newest file and that it goes as far as the head outside it.

        What a cut-off write left after the newest checkpoint was never acknowledged: it is set aside, and a note of it
        enters the log. A new key in `keys` takes over, signed for by the one before.

        Args:
            segment_bytes: a file is not begun to be written once it is so large.
            clock: the time as text; order is by number.
            acceptance: go on after a break in a new file, in place of verifying.

        Raises:
            AuditError: if the log is not what was acknowledged; nothing was changed.
            AuditUnavailableError: if the disk does not take what has to be written.
            AegisError: if another process has the log open.
        """
        log = cls(folder, keys, segment_bytes=segment_bytes, clock=clock)
        try:
            log._held.enter_context(only_process(folder))
            log._take_up(acceptance)
            log._closed = False
        except (OSError, DiskFullError) as error:
            raise _unavailable(folder, error) from error
        finally:
            if log._closed:
                log._release()
        return log

    @property
    def count(self) -> int:
        """The number of the newest record."""
        return self._chain.after

    def append(self, entry: AuditEntry) -> int:
        """The record's number, once it is on the disk.

        Raises:
            AuditUnavailableError: if it could not be put there: do not let the answer leave. Later calls try anew.
        """
        ticket = _Ticket(entry)
        with self._waiting_lock:
            self._waiting.append(ticket)
        # Whoever gets the turn writes for all who wait; they find their ticket settled when their turn comes.
        with self._turn:
            if not ticket.settled:
                with self._waiting_lock:
                    batch, self._waiting = self._waiting, []
                self._settle(batch)
        if ticket.error is not None:
            raise _unavailable(self.folder, ticket.error) from ticket.error
        return ticket.number

    def close(self) -> None:
        """The log is closed in good order: the head outside says that nothing follows its last checkpoint."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            try:
                if self._unsure:
                    self._cut_back()
                if self._head:
                    self._head.write(self._checkpoint, closed=True)
            except OSError as error:
                raise _unavailable(self.folder, error) from error
            finally:
                self._release()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, batch: list[_Ticket]) -> None:
        failure: Exception | None = RuntimeError("the process was interrupted")
        try:
            if self._closed:
                raise ValueError("the log is closed")
            lines, chain, signer = [], self._chain, self._signer
            for ticket in batch:
                ticket.number, time = chain.after + 1, self._clock()
                key = signer.record_key(self._salts.use(ticket.number), log=chain.log, number=ticket.number)
                raw, chain = chain.add(ENTRY, time=time, key=signer.id, **ticket.entry.fields(key))
                lines.append(raw)
            self._commit(lines, chain)
            failure = None
        except Exception as error:
            failure = error
        finally:
            for ticket in batch:
                ticket.error, ticket.settled = failure, True

    def _commit(self, lines: list[bytes], chain: Chain) -> None:
        """The lines and a checkpoint over them are on the disk, and the head knows of it."""
        while True:
            named = chain.next_key
            checkpoint, chain = chain.seal(self._signer_of(chain).sign, time=self._clock())
            lines = [*lines, checkpoint]
            if not named:  # the key that takes over signs too, so that a file never ends in between
                break
        self._put(b"\n".join([*lines, b""]))
        self._chain, self._checkpoint, self._signer = chain, checkpoint, self._signer_of(chain)
        if self._head:
            self._head.write(checkpoint)

    def _signer_of(self, chain: Chain) -> MasterKey:
        if self._signer.public_key == chain.public_key:
            return self._signer
        found = self.keys.find(key_id(chain.public_key))
        if found is None:
            raise AuditError(f"{self.folder}: the log is signed by key {key_id(chain.public_key)}; give that key too")
        return found

    def _put(self, data: bytes) -> None:
        if self._unsure:
            self._cut_back()
        if self._size and self._size + len(data) > self.segment_bytes:
            self._open_segment(self._number + 1)
        self._unsure = True
        _write_all(self._descriptor, data)
        os.fsync(self._descriptor)
        if self._fresh:
            sync_folder(self.folder)
        self._size, self._fresh, self._unsure = self._size + len(data), False, False

    def _cut_back(self) -> None:
        """Take away what a failed write may have left; after a failed fsync its pages must be written anew."""
        os.ftruncate(self._descriptor, self._size)
        os.fsync(self._descriptor)
        self._unsure = False

    def _open_segment(self, number: int, size: int = 0) -> None:
        descriptor = open_private(segment_path(self.folder, number), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._number, self._size, self._fresh = descriptor, number, size, True
        if os.fstat(descriptor).st_size != size:
            self._unsure = True
            self._cut_back()

    def _take_up(self, acceptance: Acceptance | None) -> None:
        make_folder(self.folder)
        paths = segments(self.folder)
        if acceptance:
            begun = Chain(acceptance.log, acceptance.after)
            number = 1 + max((segment_number(path) for path in paths), default=0)
            self._begin(begun, ACCEPTED, number, sequence=acceptance.sequence, facts=acceptance.facts)
        else:
            head = read_head(self.keys)
            found = read_newest(self.folder, self.keys, head)
            if found.tail:
                self._set_aside(paths[-1], found)
            if found.checkpoint:
                self._chain, self._checkpoint = found.chain, found.checkpoint
                self._open_segment(segment_number(paths[-1]), found.end)
                self._head = HeadFile(self.keys.folder, sequence=head.sequence if head else 0, raw=found.checkpoint)
            else:
                self._begin(Chain(os.urandom(16).hex()), BEGIN, 1, sequence=0, facts={})
        self._bring_up_to_date()

    def _begin(self, chain: Chain, kind: str, number: int, *, sequence: int, facts: Mapping[str, Any]) -> None:
        self._open_segment(number)
        begun = Chain(chain.log, chain.after, public_key=self.keys.active.public_key)
        first, begun = begun.begin(kind, time=self._clock(), **facts)
        self._commit([first], begun)
        self._head = HeadFile(self.keys.folder, sequence=sequence, raw=self._checkpoint)

    def _bring_up_to_date(self) -> None:
        """The notes that waited are in the log, and the newest key signs."""
        notes, lines, chain = pending(self.keys.folder), [], self._chain
        for note in notes:
            raw, chain = chain.add(**note)
            lines.append(raw)
        if chain.public_key != self.keys.active.public_key:
            active = self.keys.active
            raw, chain = chain.add(ROTATE, time=self._clock(), public_key=active.public_key, new_key=active.id)
            lines.append(raw)
        if lines or parse(self._checkpoint)["key"] != key_id(chain.public_key):
            self._commit(lines, chain)
        if notes:
            forget(self.keys.folder)

    def _set_aside(self, path: Path, found: Scan) -> None:
        """What was never acknowledged is in a file of its own, with a note of it, and no longer in the log."""
        name = f"{path.stem}-at-{found.end}.bin"
        make_folder(self.folder / ASIDE)
        descriptor = open_private(self.folder / ASIDE / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(found.tail)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder / ASIDE)
        facts = {"bytes": len(found.tail), "sha256": hashlib.sha256(found.tail).hexdigest(), "file": name}
        add_note(self.keys.folder, {"kind": UNFINISHED, "time": self._clock(), **facts})
        self._open_segment(segment_number(path), found.end)

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._head:
            self._head.close()
        self._held.close()


def read_newest(folder: Path, keys: AuditKeys, head: Head | None) -> Scan:
    """The newest file is sound and goes as far as the head; its signature covers all files before it.

    Raises:
        AuditError: if not.
    """
    paths = segments(folder)
    try:
        if not paths and head:
            raise AuditError(f"there is no log, and {head.after} records were acknowledged")
        index, start = resume_from(paths, keys, head)
        wanted = [head.raw] if head else []
        found = scan(paths[index:], start, wanted=wanted, every_signature=False)
        if problem := fault(found, head, keys_given=True):
            raise AuditError(problem)
    except AuditError as error:
        raise AuditError(
            f"{folder}: the audit log is not what was acknowledged: {error}. Nothing is appended to it; look with: "
            f"aegis audit verify {folder}"
        ) from None
    return found


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _unavailable(folder: Path, error: Exception) -> AuditUnavailableError:
    if is_disk_full(error):
        return AuditUnavailableError(f"{folder}: the disk is full, so nothing can be recorded or answered; free some room")
    return AuditUnavailableError(f"{folder}: the record could not be written ({error}), so its answer must not leave")

"""The writer: an answer leaves once its record, sealed with all before it, is on the disk;
signatures follow each second."""

from __future__ import annotations

import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aegis.audit.chain import (
    ACCEPTED,
    BEGIN,
    CHECKPOINT,
    ENTRY,
    ROTATE,
    UNFINISHED,
    Chain,
    key_id,
    parse,
)
from aegis.audit.entry import AuditEntry
from aegis.audit.keys import AuditKeys, MasterKey, utc_now
from aegis.audit.log_tip import Head, HeadFile, read_head
from aegis.audit.notes import add_note, forget, pending
from aegis.audit.private import open_private, sync_data, write_at
from aegis.audit.reader import (
    Scan,
    fault,
    resume_from,
    scan,
    segment_number,
    segment_path,
    segments,
)
from aegis.audit.salts import Salts
from aegis.errors import AuditError, AuditUnavailableError, DiskFullError, is_disk_full
from aegis.storage.files import make_folder, sync_folder
from aegis.storage.lock import only_process

SEGMENT_BYTES = 16 << 20
AHEAD = (
    1 << 20
)  # bytes of zeros written ahead: a record then changes no metadata, and its sync is one write to the disk
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


@dataclass(frozen=True)
class _Position:
    """How far the log is on the disk; replaced as a whole, so that no interrupt can part chain and
    size."""

    chain: Chain = Chain()  # noqa: RUF009 - frozen
    sealed: bytes = b""
    size: int = 0  # bytes of the newest file


@dataclass
class _Ticket:
    entry: AuditEntry
    number: int = 0
    settled: bool = False
    error: Exception | None = None


class AuditLog:
    """One process's hold on a log. `append` may be called from any thread; those that wait share an
    fsync.

    Use `open`; leave with `close`, or as a context manager.
    """

    def __init__(
        self,
        folder: Path,
        keys: AuditKeys,
        *,
        segment_bytes: int,
        sign_every_s: float,
        clock: Callable[[], str],
    ) -> None:
        self.folder, self.keys, self.segment_bytes, self._clock = folder, keys, segment_bytes, clock
        self.sign_every_s, self._signed_s = sign_every_s, -math.inf
        self._salts = Salts(keys.folder / SALTS)
        self._at = _Position()
        self._signer: MasterKey = keys.active
        self._head: HeadFile | None = None
        self._descriptor, self._number, self._room = -1, 0, 0
        self._fresh, self._unsure, self._closed = False, False, True
        self._waiting: list[_Ticket] = []
        self._busy, self._turn, self._held = (
            False,
            threading.Condition(threading.Lock()),
            ExitStack(),
        )

    @classmethod
    def open(
        cls,
        folder: Path,
        keys: AuditKeys,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        sign_every_s: float = 1.0,
        clock: Callable[[], str] = utc_now,
        acceptance: Acceptance | None = None,
    ) -> AuditLog:
        """Take the log up, having verified its newest file and that it goes as far as the head
        outside it.

        What a cut-off write left after the newest seal was never acknowledged: it is set aside, and
        a note of it enters the log. A new key in `keys` takes over, signed for by the one before.

        Args:
            segment_bytes: a file gets no more records once it is so large.
            sign_every_s: at least so many seconds are between two signatures, but for those at the
                end of a file.
            clock: the time as text; order is by number.
            acceptance: go on after a break in a new file, in place of verifying.

        Raises:
            AuditError: if the log is not what was acknowledged; nothing was changed.
            AuditUnavailableError: if the disk does not take what has to be written.
            AegisError: if another process has the log open.
        """
        log = cls(folder, keys, segment_bytes=segment_bytes, sign_every_s=sign_every_s, clock=clock)
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
        return self._at.chain.after

    def append(self, entry: AuditEntry) -> int:
        """The record's number, once it is on the disk.

        Raises:
            AuditUnavailableError: if it could not be put there: do not let the answer leave. Later
                calls try anew.
        """
        ticket, mine, batch = _Ticket(entry), False, list[_Ticket]()
        try:
            with self._turn:
                self._waiting.append(ticket)
                while self._busy and not ticket.settled:
                    self._turn.wait()
                if not ticket.settled:  # nobody is writing: this thread writes for all who wait
                    mine = self._busy = True
                    batch, self._waiting = self._waiting, []
            if mine:
                self._settle(batch)
        finally:
            if mine:
                with self._turn:
                    self._busy = False
                    self._turn.notify_all()
        if ticket.error is not None:
            raise _unavailable(self.folder, ticket.error) from ticket.error
        return ticket.number

    def sign(self) -> None:
        """The newest line is a signed checkpoint: for a server that has been idle since its last
        record.

        Raises:
            AuditUnavailableError: if it could not be put on the disk.
        """
        with self._alone():
            if not self._closed:
                self._sign_newest()

    def close(self) -> None:
        """The log ends with a signed checkpoint, and the head outside says that nothing follows it.

        Raises:
            AuditUnavailableError: if that could not be put on the disk; every record acknowledged
                is there all the same.
        """
        with self._alone():
            if self._closed:
                return
            self._closed = True
            try:
                self._sign_newest()
                self._cut_back()
                if self._head:
                    self._head.write(self._at.sealed, closed=True)
            finally:
                self._release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes meanwhile; a failure to write is told as such."""
        with self._turn:
            while self._busy:
                self._turn.wait()
            self._busy = True
        try:
            yield
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        finally:
            with self._turn:
                self._busy = False
                self._turn.notify_all()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, batch: list[_Ticket]) -> None:
        failure: Exception | None = RuntimeError("the process was interrupted")
        try:
            if self._closed:
                raise ValueError("the log is closed")
            self._leave_full_file()
            lines, chain, now = [], self._at.chain, self._clock()
            signer = self._signer_of(chain)
            for ticket in batch:
                ticket.number = chain.after + 1
                key = signer.record_key(
                    self._salts.use(ticket.number), log=chain.log, number=ticket.number
                )
                raw, chain = chain.add(ENTRY, time=now, key=signer.id, **ticket.entry.fields(key))
                lines.append(raw)
            self._commit(lines, chain, now=now)
            failure = None
        except Exception as error:
            failure = error
        finally:
            for ticket in batch:
                ticket.error, ticket.settled = failure, True

    def _commit(self, lines: list[bytes], chain: Chain, *, now: str, sign: bool = False) -> None:
        """The lines and a seal over them are on the disk, and the head knows of it; a checkpoint
        where one is due."""
        monotonic_s = time.monotonic()
        if sign or chain.next_key or monotonic_s - self._signed_s >= self.sign_every_s:
            while True:
                named = chain.next_key
                sealed, chain = chain.sign(self._signer_of(chain).sign, time=now)
                lines = [*lines, sealed]
                if (
                    not named
                ):  # the key that takes over signs too, so that a file never ends in between
                    break
            self._signed_s = monotonic_s
        else:
            sealed, chain = chain.seal(self._signer_of(chain).mac_key, time=now)
            lines = [*lines, sealed]
        self._put(b"\n".join([*lines, b""]), chain, sealed)
        self._signer = self._signer_of(chain)
        if self._head:
            self._head.write(sealed)

    def _sign_newest(self) -> None:
        if parse(self._at.sealed)["kind"] != CHECKPOINT:
            self._commit([], self._at.chain, now=self._clock(), sign=True)

    def _leave_full_file(self) -> None:
        """A file that is full ends with a checkpoint, and the next one is begun."""
        if self._at.size >= self.segment_bytes:
            self._sign_newest()
            self._cut_back()
            self._open_segment(self._number + 1)

    def _signer_of(self, chain: Chain) -> MasterKey:
        if self._signer.public_key == chain.public_key:
            return self._signer
        found = self.keys.find(key_id(chain.public_key))
        if found is None:
            raise AuditError(
                f"{self.folder}: the log is signed by key {key_id(chain.public_key)}; give that key too"
            )
        return found

    def _put(self, data: bytes, chain: Chain, sealed: bytes) -> None:
        if self._unsure:
            self._cut_back()
        self._unsure, end = True, self._at.size + len(data)
        if end > self._room:
            ahead = min(AHEAD, max(0, self.segment_bytes - end))
            write_at(self._descriptor, bytes(end + ahead - self._room), self._room)
            os.fsync(self._descriptor)
            self._room = end + ahead
        write_at(self._descriptor, data, self._at.size)
        sync_data(self._descriptor)
        if self._fresh:
            sync_folder(self.folder)
        self._at = _Position(chain, sealed, end)
        self._fresh, self._unsure = False, False

    def _cut_back(self) -> None:
        """The file ends with what is acknowledged. After a failed sync this makes the next one
        write its pages anew."""
        os.ftruncate(self._descriptor, self._at.size)
        os.fsync(self._descriptor)
        self._room, self._unsure = self._at.size, False

    def _open_segment(self, number: int, size: int = 0) -> None:
        descriptor = open_private(segment_path(self.folder, number), os.O_CREAT | os.O_WRONLY)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._number, self._room, self._fresh = descriptor, number, size, True
        self._at = replace(self._at, size=size)
        if os.fstat(descriptor).st_size != size:
            self._unsure = True
            self._cut_back()

    def _take_up(self, acceptance: Acceptance | None) -> None:
        make_folder(self.folder)
        paths = segments(self.folder)
        if acceptance:
            begun = Chain(acceptance.log, acceptance.after)
            number = 1 + max((segment_number(path) for path in paths), default=0)
            self._begin(
                begun, ACCEPTED, number, sequence=acceptance.sequence, facts=acceptance.facts
            )
        else:
            head = read_head(self.keys)
            found = read_newest(self.folder, self.keys, head)
            if found.tail:
                self._set_aside(paths[-1], found)
            if found.sealed:
                self._at = _Position(found.chain, found.sealed)
                self._open_segment(segment_number(paths[-1]), found.end)
                self._head = HeadFile(
                    self.keys.folder, sequence=head.sequence if head else 0, raw=found.sealed
                )
            else:
                self._begin(Chain(os.urandom(16).hex()), BEGIN, 1, sequence=0, facts={})
        self._bring_up_to_date()

    def _begin(
        self, chain: Chain, kind: str, number: int, *, sequence: int, facts: Mapping[str, Any]
    ) -> None:
        self._open_segment(number)
        begun = Chain(chain.log, chain.after, public_key=self.keys.active.public_key)
        now = self._clock()
        first, begun = begun.begin(kind, time=now, **facts)
        self._commit([first], begun, now=now, sign=True)
        self._head = HeadFile(self.keys.folder, sequence=sequence, raw=self._at.sealed)

    def _bring_up_to_date(self) -> None:
        """The notes that waited are in the log, and the newest key signs."""
        notes, lines, chain = pending(self.keys.folder), [], self._at.chain
        for note in notes:
            raw, chain = chain.add(**note)
            lines.append(raw)
        if chain.public_key != self.keys.active.public_key:
            active = self.keys.active
            raw, chain = chain.add(
                ROTATE, time=self._clock(), public_key=active.public_key, new_key=active.id
            )
            lines.append(raw)
        if lines or parse(self._at.sealed)["key"] != key_id(chain.public_key):
            self._commit(lines, chain, now=self._clock(), sign=True)
        if notes:
            forget(self.keys.folder)

    def _set_aside(self, path: Path, found: Scan) -> None:
        """What was never acknowledged is in a file of its own, with a note of it, and no longer in
        the log."""
        name = f"{path.stem}-at-{found.end}.bin"
        make_folder(self.folder / ASIDE)
        descriptor = open_private(self.folder / ASIDE / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        with os.fdopen(descriptor, "wb") as file:
            file.write(found.tail)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder / ASIDE)
        facts = {
            "bytes": len(found.tail),
            "sha256": hashlib.sha256(found.tail).hexdigest(),
            "file": name,
        }
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
    """The newest file is sound and goes as far as the head; its seals cover all files before it.

    Raises:
        AuditError: if not.
    """
    paths = segments(folder)
    try:
        if not paths and head:
            raise AuditError(f"there is no log, and {head.after} records were acknowledged")
        index, start, sealed = resume_from(paths, keys, head)
        wanted = [head.raw] if head else []
        found = scan(paths[index:], start, sealed=sealed, wanted=wanted)
        if problem := fault(found, head, keys_given=True):
            raise AuditError(problem)
    except AuditError as error:
        raise AuditError(
            f"{folder}: the audit log is not what was acknowledged: {error}. Nothing is appended to it; look with: "
            f"aegis audit verify {folder}"
        ) from None
    return found


def _unavailable(folder: Path, error: Exception) -> AuditUnavailableError:
    if is_disk_full(error):
        return AuditUnavailableError(
            f"{folder}: the disk is full, so nothing can be recorded or answered; free some room"
        )
    return AuditUnavailableError(
        f"{folder}: the record could not be written ({error}), so its answer must not leave"
    )

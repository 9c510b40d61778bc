"""Write an audit log: an answer leaves once its record, sealed, is on the disk.

Signatures follow each second.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aegis.audit.chain import Chain, Kind, key_id, parse
from aegis.audit.entry import AuditEntry
from aegis.audit.keystore import OWNER_ONLY, AuditKeys, MasterKey, utc_now
from aegis.audit.log_tip import LogTipWriter, read_log_tip
from aegis.audit.reader import read_newest, segment_number, segment_path, segments
from aegis.errors import AuditError, AuditUnavailableError, DiskFullError, is_disk_full
from aegis.storage.files import (
    make_folder,
    open_descriptor,
    require_in_place,
    sync_data,
    sync_folder,
    write_at,
    write_synced,
)
from aegis.storage.lock import only_process

SEGMENT_BYTES = 16 << 20
# Zeros written ahead: a record then changes no metadata, and its sync is one write to the disk.
_AHEAD_BYTES = 1 << 20
_UNFINISHED_FOLDER = "unfinished"
Clock = Callable[[], str]


@dataclass(frozen=True)
class Acceptance:
    """A break that the owner has accepted: a new chain begins here, in a new file.

    Args:
        sequence: of the log's tip so far.
        facts: what the signed line holds: `reason`, `problem`, sha256 of every file as it stands.
    """

    log: str
    after: int
    sequence: int
    facts: Mapping[str, Any]


@dataclass
class _Ticket:
    """An entry that waits for its record."""

    entry: AuditEntry
    number: int = 0
    finished: bool = False
    error: Exception | None = None


class _Written(NamedTuple):
    """What is on the disk; replaced as a whole, so that no interrupt parts chain and size."""

    chain: Chain = Chain()
    sealed: bytes = b""
    size: int = 0  # bytes of the newest file


class AuditLog:
    """One process's hold on a log; `append` may be called from any thread.

    Threads that wait share an fsync. Use `open`; leave with `close`, or as a context manager.
    """

    def __init__(
        self, folder: Path, keys: AuditKeys, segment_bytes: int, sign_every_s: float, clock: Clock
    ) -> None:
        self.folder, self.keys, self.segment_bytes, self._clock = folder, keys, segment_bytes, clock
        self.sign_every_s, self._signed_s = sign_every_s, -math.inf
        self._salts = keys.salts
        self._written = _Written()
        self._tip: LogTipWriter | None = None
        # The newest file: its descriptor, its number, and its size with the zeros ahead.
        self._descriptor, self._number, self._reserved = -1, 0, 0
        self._is_new, self._has_unknown_end, self._closed = False, False, True
        self._waiting: list[_Ticket] = []
        self._busy, self._turn = False, threading.Condition(threading.Lock())
        self._resources = ExitStack()

    @classmethod
    def open(
        cls,
        folder: Path,
        keys: AuditKeys,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        sign_every_s: float = 1.0,
        clock: Clock = utc_now,
        acceptance: Acceptance | None = None,
    ) -> AuditLog:
        """Open the log, once its newest file is verified and reaches the tip outside it.

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
        log = cls(folder, keys, segment_bytes, sign_every_s, clock)
        try:
            log._resources.enter_context(only_process(folder))
            if acceptance:
                log._begin_after_break(acceptance)
            else:
                log._resume()
            log._write_changes()
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
        return self._written.chain.after

    def append(self, entry: AuditEntry) -> int:
        """Return the record's number, once it is on the disk.

        Raises:
            AuditUnavailableError: if it could not be put there: do not let the answer leave. Later
                calls try anew.
        """
        ticket = _Ticket(entry)
        with self._turn:
            self._waiting.append(ticket)
        with self._exclusive(lambda: ticket.finished):
            if not ticket.finished:  # nobody is writing: this thread writes for all who wait
                with self._turn:
                    batch, self._waiting = self._waiting, []
                self._write_batch(batch)
        if ticket.error is not None:
            raise _unavailable(self.folder, ticket.error) from ticket.error
        return ticket.number

    def sign(self) -> None:
        """Sign what is not yet signed, for a server that has been idle since its last record.

        Raises:
            AuditUnavailableError: if the checkpoint could not be put on the disk.
        """
        with self._exclusive():
            if not self._closed:
                self._sign_newest()

    def close(self) -> None:
        """End the log with a signed checkpoint, and write to its tip that nothing follows.

        Raises:
            AuditUnavailableError: if that could not be put on the disk; every record acknowledged
                is there all the same.
        """
        with self._exclusive():
            if self._closed:
                return
            self._closed = True
            try:
                self._sign_newest()
                self._cut_back()
                if self._tip:
                    self._tip.write(self._written.sealed, closed=True)
            finally:
                self._release()

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _exclusive(self, unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Keep other threads from writing, unless there is no need to by the time of one's turn.

        A failure to write becomes AuditUnavailableError.
        """
        holds = False
        try:
            with self._turn:
                self._turn.wait_for(lambda: unless() or not self._busy)
                if not unless():
                    holds = self._busy = True
            yield
        except OSError as error:
            raise _unavailable(self.folder, error) from error
        finally:
            if holds:
                with self._turn:
                    self._busy = False
                    self._turn.notify_all()

    def _write_batch(self, batch: list[_Ticket]) -> None:
        failure: Exception | None = RuntimeError("the process was interrupted")
        try:
            if self._closed:
                raise ValueError("the log is closed")
            if self._written.size >= self.segment_bytes:
                self._sign_newest()
                self._cut_back()
                self._open_segment(self._number + 1)
            lines, chain, now = [], self._written.chain, self._clock()
            signer = self._signer(chain)
            for ticket in batch:
                ticket.number = number = chain.after + 1
                key = signer.record_key(self._salts.use(number), log=chain.log, number=number)
                fields = ticket.entry.fields(key)
                raw, chain = chain.add(Kind.ENTRY, time=now, key=signer.id, **fields)
                lines.append(raw)
            self._commit(lines, chain, now)
            failure = None
        except Exception as error:
            failure = error
        finally:
            for ticket in batch:
                ticket.error, ticket.finished = failure, True

    def _commit(self, lines: list[bytes], chain: Chain, now: str, *, sign: bool = False) -> None:
        """Put the lines on the disk, with a checkpoint if it is time for one, else with a seal."""
        monotonic_s = time.monotonic()
        if not sign and not chain.next_key and monotonic_s - self._signed_s < self.sign_every_s:
            sealed, chain = chain.seal(self._signer(chain).mac_key, time=now)
            lines = [*lines, sealed]
        else:
            # A key that takes over signs too, so that a file never ends in between.
            for _ in range(2 if chain.next_key else 1):
                signed, chain = chain.sign(self._signer(chain).sign, time=now)
                lines = [*lines, signed]
            self._signed_s = monotonic_s
        if self._tip:
            self._tip.require_in_place()
        self._put(lines, chain)
        if self._tip:
            self._tip.write(lines[-1])

    def _sign_newest(self) -> None:
        if parse(self._written.sealed)["kind"] != Kind.CHECKPOINT:
            self._commit([], self._written.chain, self._clock(), sign=True)

    def _signer(self, chain: Chain) -> MasterKey:
        id = key_id(chain.public_key)
        if signer := self.keys.find(id):
            return signer
        raise AuditError(f"{self.folder}: the log is signed by key {id}; give that key too")

    def _put(self, lines: list[bytes], chain: Chain) -> None:
        """Put the lines, the last of which seals the others, on the disk."""
        data = b"\n".join([*lines, b""])
        self._require_in_place(exact=not self._has_unknown_end)
        if self._has_unknown_end:
            self._cut_back()
        self._has_unknown_end, end = True, self._written.size + len(data)
        if end > self._reserved:
            reserved = end + min(_AHEAD_BYTES, max(0, self.segment_bytes - end))
            write_at(self._descriptor, bytes(reserved - self._reserved), self._reserved)
            os.fsync(self._descriptor)
            self._reserved = reserved
        write_at(self._descriptor, data, self._written.size)
        sync_data(self._descriptor)
        self._require_in_place(exact=True)
        if self._is_new:
            sync_folder(self.folder)
        self._written = _Written(chain, lines[-1], end)
        self._is_new, self._has_unknown_end = False, False

    def _cut_back(self) -> None:
        """Cut what is not acknowledged from the newest file.

        After a failed sync this makes the next one write its pages anew.
        """
        self._require_in_place(exact=False)
        os.ftruncate(self._descriptor, self._written.size)
        os.fsync(self._descriptor)
        self._reserved, self._has_unknown_end = self._written.size, False

    def _require_in_place(self, *, exact: bool) -> None:
        """Raise OSError unless readers find the newest file, and it is as long as it was left."""
        path = segment_path(self.folder, self._number)
        size = require_in_place(self._descriptor, path).st_size
        if size < self._written.size or (exact and size != self._reserved):
            raise OSError(
                errno.ESTALE, f"has {size} bytes and was left with another size", str(path)
            )

    def _open_segment(self, number: int, size: int = 0) -> None:
        flags = os.O_CREAT | os.O_WRONLY
        descriptor = open_descriptor(segment_path(self.folder, number), flags, OWNER_ONLY)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._number = descriptor, number
        self._reserved, self._is_new = size, True
        self._written = self._written._replace(size=size)
        if os.fstat(descriptor).st_size != size:
            self._has_unknown_end = True
            self._cut_back()

    def _begin_after_break(self, acceptance: Acceptance) -> None:
        make_folder(self.folder)
        self._salts.renew(acceptance.after + 1)
        number = 1 + max(map(segment_number, segments(self.folder)), default=0)
        chain = Chain(acceptance.log, acceptance.after)
        self._begin(chain, Kind.ACCEPTED, number, acceptance.facts, sequence=acceptance.sequence)

    def _resume(self) -> None:
        make_folder(self.folder)
        paths, tip = segments(self.folder), read_log_tip(self.keys)
        result = read_newest(self.folder, self.keys, tip)
        self._salts.require(result.chain.after + 1)
        number = segment_number(paths[-1]) if paths else 1
        if result.tail:
            self._set_aside(f"{paths[-1].stem}-at-{result.end}.bin", result.tail)
        if not result.sealed:
            self._begin(Chain(os.urandom(16).hex()), Kind.BEGIN, number, {}, sequence=0)
            return
        self._written = _Written(result.chain, result.sealed)
        self._open_segment(number, result.end)
        sequence = tip.sequence if tip else 0
        self._tip = LogTipWriter(self.keys.folder, sequence=sequence, raw=result.sealed)

    def _begin(
        self, chain: Chain, kind: str, number: int, facts: Mapping[str, Any], *, sequence: int
    ) -> None:
        self._open_segment(number)
        now = self._clock()
        chain = chain._replace(public_key=self.keys.active.public_key)
        raw, chain = chain.begin(kind, time=now, **facts)
        self._commit([raw], chain, now, sign=True)
        self._tip = LogTipWriter(self.keys.folder, sequence=sequence, raw=self._written.sealed)

    def _write_changes(self) -> None:
        """Write the notes that waited, and the change of keys if there is a new one."""
        notes, lines, chain = self.keys.read_notes(), list[bytes](), self._written.chain
        for note in notes:
            raw, chain = chain.add(**note)
            lines.append(raw)
        active = self.keys.active
        if chain.public_key != active.public_key:
            keys = {"public_key": active.public_key, "new_key": active.id}
            raw, chain = chain.add(Kind.ROTATE, time=self._clock(), **keys)
            lines.append(raw)
        if lines or parse(self._written.sealed)["key"] != key_id(chain.public_key):
            self._commit(lines, chain, self._clock(), sign=True)
        if notes:
            self.keys.clear_notes()

    def _set_aside(self, name: str, tail: bytes) -> None:
        """Keep what was never acknowledged in a file of its own, with a note of it."""
        folder = self.folder / _UNFINISHED_FOLDER
        make_folder(folder)
        write_synced(folder / name, tail, OWNER_ONLY)
        sync_folder(folder)
        facts = {"bytes": len(tail), "sha256": hashlib.sha256(tail).hexdigest(), "file": name}
        self.keys.add_note({"kind": Kind.UNFINISHED, "time": self._clock(), **facts})

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._tip:
            self._tip.close()
        self._resources.close()


def _unavailable(folder: Path, error: Exception) -> AuditUnavailableError:
    reason = f"the record could not be written ({error}), so its answer must not leave"
    if is_disk_full(error):
        reason = "the disk is full, so nothing can be recorded or answered; free some room"
    return AuditUnavailableError(f"{folder}: {reason}")

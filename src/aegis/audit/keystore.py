"""The keys folder of an audit log, outside the log: master keys, salts and notes that wait.

keys.json        the master keys, unless AEGIS_AUDIT_KEY holds them
salts/           32 random bytes a record: without them the master keys open nothing
head             the newest seal or checkpoint (`log_tip.py`): the log may not be shorter
pending.json     notes that enter the log when it is next opened
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aegis.audit.chain import Kind, Line, is_sealed, is_signed, key_id
from aegis.errors import AuditError
from aegis.storage.files import descriptor_of, make_folder, to_json, write_at, write_bytes

ENVIRONMENT = "AEGIS_AUDIT_KEY"
OWNER_ONLY = 0o600
KEY_BYTES = 32  # of a master key, of a salt, and of every derived key
SALT_BLOCK = 4096  # salts a file
_KEYS_FILE, _NOTES_FILE = "keys.json", "pending.json"


def utc_now() -> str:
    """Return the time as the log writes it; for people, the order is that of the numbers."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def default_keys_folder(log: Path) -> Path:
    """Return where a log's keys are unless the user names another folder."""
    return log.with_name(f"{log.name}.keys")


def make_private_folder(path: Path) -> None:
    """Make the folder durably, mode 0700 if it is new (Windows uses the parent's rights)."""
    if not path.is_dir():
        make_folder(path)
        path.chmod(0o700)


@dataclass(frozen=True, repr=False)
class MasterKey:
    """32 secret bytes, from which HKDF (RFC 5869) derives every other key, with its own info."""

    secret: bytes

    def __repr__(self) -> str:
        return f"MasterKey({self.id}, secret withheld)"

    @cached_property
    def _signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._derive(None, b"aegis audit signature v1"))

    @cached_property
    def public_key(self) -> str:
        """The key to verify checkpoints with, in hexadecimal."""
        return self._signer.public_key().public_bytes_raw().hex()

    @cached_property
    def mac_key(self) -> bytes:
        """The key to make and check seals with."""
        return self._derive(None, b"aegis audit seal v1")

    @cached_property
    def id(self) -> str:
        return key_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        return self._signer.sign(message)

    def record_key(self, salt: bytes, *, log: str, number: int) -> bytes:
        """Derive the key of one record's commitments."""
        info = b"aegis audit record v1" + number.to_bytes(8, "big") + log.encode()
        return self._derive(salt, info)

    def _derive(self, salt: bytes | None, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(self.secret)


@dataclass(frozen=True)
class AuditKeys:
    """The keys folder and its master keys.

    Args:
        masters: oldest first; the last one signs, the others open older records.
    """

    folder: Path
    masters: tuple[MasterKey, ...]

    @property
    def active(self) -> MasterKey:
        return self.masters[-1]

    @property
    def public_keys(self) -> frozenset[str]:
        return frozenset(master.public_key for master in self.masters)

    @property
    def mac_keys(self) -> dict[str, bytes]:
        return {master.public_key: master.mac_key for master in self.masters}

    @property
    def salts(self) -> Salts:
        return Salts(self.folder / "salts")

    def find(self, id: str) -> MasterKey | None:
        return next((master for master in self.masters if master.id == id), None)

    def read_notes(self) -> list[dict[str, Any]]:
        """Return the notes that wait for the log's next opening, in order, each with its `kind`.

        Raises:
            AuditError: if the file is damaged.
        """
        path = self.folder / _NOTES_FILE
        if not path.is_file():
            return []
        try:
            notes = json.loads(path.read_bytes())
            if isinstance(notes, list) and all(isinstance(note["kind"], str) for note in notes):
                return notes
        except (ValueError, KeyError, TypeError):
            pass
        raise AuditError(f"{path}: is not a list of notes; read it, then move it away")

    def add_note(self, note: dict[str, Any]) -> None:
        """Write the note to the disk; adding the same one again changes nothing."""
        notes = self.read_notes()
        if note not in notes:
            make_private_folder(self.folder)
            text = to_json([*notes, note])
            write_bytes(self.folder / _NOTES_FILE, text.encode(), OWNER_ONLY)

    def clear_notes(self) -> None:
        (self.folder / _NOTES_FILE).unlink(missing_ok=True)

    def find_maker(self, line: Line) -> MasterKey | None:
        """Return the master key that made the seal or checkpoint, if it is among these."""
        master = self.find(line["key"])
        if master and line["kind"] == Kind.SEAL:
            return master if is_sealed(line, master.mac_key) else None
        return master if master and is_signed(line, master.public_key) else None

    @classmethod
    def create(cls, folder: Path) -> AuditKeys:
        """Make a keys folder with one new master key, durably.

        Raises:
            AuditError: if there is one already.
        """
        if (folder / _KEYS_FILE).exists():
            rotate = "for a new key beside it run: aegis audit rotate"
            raise AuditError(f"{folder / _KEYS_FILE}: exists already; {rotate}")
        make_private_folder(folder)
        return _save(folder, (MasterKey(secrets.token_bytes(KEY_BYTES)),))

    @classmethod
    def load(cls, folder: Path, environment: Mapping[str, str] = os.environ) -> AuditKeys:
        """Read the master keys from AEGIS_AUDIT_KEY, if it is set, otherwise from the folder.

        Raises:
            AuditError: if there are none, if they are not keys, or if others can read the file.
        """
        if given := environment.get(ENVIRONMENT):
            return cls(folder, _parse(re.split(r"[\s,]+", given.strip()), ENVIRONMENT))
        path = folder / _KEYS_FILE
        if not path.is_file():
            raise AuditError(
                f"{path}: no such file; set {ENVIRONMENT}, name the folder with --keys, "
                f"or run: aegis audit key new {folder}"
            )
        mode = stat.S_IMODE(path.stat().st_mode)
        if os.name == "posix" and mode & 0o077:
            raise AuditError(
                f"{path}: must be readable by its owner alone, mode is {mode:04o}; "
                f"run: chmod 600 {path}"
            )
        try:
            texts = [str(key["secret"]) for key in json.loads(path.read_bytes())["keys"]]
        except (ValueError, KeyError, TypeError):
            problem = "is not a file of audit keys; restore it from your copy"
            raise AuditError(f"{path}: {problem}") from None
        return cls(folder, _parse(texts, str(path)))

    def rotated(self) -> AuditKeys:
        """Add a new master key, durably; it signs from the log's next opening on.

        Raises:
            AuditError: if the keys are not in a file.
        """
        if not (self.folder / _KEYS_FILE).is_file():
            raise AuditError(
                f"the keys come from {ENVIRONMENT}: append a new one to it (openssl rand -hex "
                f"{KEY_BYTES}), separated by a comma, and start the server again"
            )
        return _save(self.folder, (*self.masters, MasterKey(secrets.token_bytes(KEY_BYTES))))


def _save(folder: Path, masters: tuple[MasterKey, ...]) -> AuditKeys:
    path = folder / _KEYS_FILE
    saved = json.loads(path.read_bytes())["keys"] if path.is_file() else []
    keys = {key["id"]: key for key in saved}
    for master in masters:
        public = {"id": master.id, "made": utc_now(), "public_key": master.public_key}
        keys.setdefault(master.id, {**public, "secret": master.secret.hex()})
    content = {"version": 1, "keys": [keys[master.id] for master in masters]}
    write_bytes(path, to_json(content).encode(), OWNER_ONLY)
    return AuditKeys(folder, masters)


def _parse(texts: list[str], source: str) -> tuple[MasterKey, ...]:
    if not texts or any(not re.fullmatch(r"[0-9a-fA-F]{64}", text) for text in texts):
        raise AuditError(
            f"{source}: a master key must be {2 * KEY_BYTES} hexadecimal digits; "
            f"make one with: openssl rand -hex {KEY_BYTES}"
        )
    return tuple(MasterKey(bytes.fromhex(text)) for text in texts)


class Salts:
    """One random salt a record: nobody can open a record whose salt is erased.

    A master key alone could derive every record's key again, so erasing one record needs something
    of its own to erase. Salts are made and synced in blocks ahead of the records that use them, so
    that a record costs one fsync, not two. Numbers begin at 1.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._block_number, self._block = -1, b""
        self._status = os.stat_result(bytes(10))

    def use(self, number: int) -> bytes:
        """Return the salt of a new record, which is on the disk; for one thread at a time.

        Raises:
            OSError, DiskFullError: if a new block cannot be written.
            AuditError: if a salt that was on the disk is there no more.
        """
        block, index = divmod(number - 1, SALT_BLOCK)
        path, offset = self._locate(number)
        if block != self._block_number:
            if not index:
                self.renew(number)
            self.require(number)
            self._block, self._status = path.read_bytes(), path.stat()
            self._block_number = block
        status = path.stat()
        if status.st_size != len(self._block) or not os.path.samestat(status, self._status):
            raise AuditError(f"{path}: was replaced or cut while the log is written; put it back")
        return self._block[offset : offset + KEY_BYTES]

    def renew(self, number: int) -> None:
        """Make the salts of this record and of those after it in its block, as far as they are not
        there; those before it stay as they are."""
        path, offset = self._locate(number)
        whole = SALT_BLOCK * KEY_BYTES
        kept = _read(path)
        salts = [kept[:offset].ljust(offset, b"\0")]
        for place in range(offset, whole, KEY_BYTES):
            salt = kept[place : place + KEY_BYTES]
            salts.append(salt if _is_salt(salt) else secrets.token_bytes(KEY_BYTES))
        if (block := b"".join(salts)) != kept:
            make_private_folder(self.folder)
            write_bytes(path, block, OWNER_ONLY)

    def require(self, number: int) -> None:
        """Check that the next record has its salt, unless its block is yet to be made.

        Raises:
            AuditError: if not, for then those of earlier records are lost too.
        """
        path, offset = self._locate(number)
        block = _read(path)
        whole = len(block) == SALT_BLOCK * KEY_BYTES and any(block[offset : offset + KEY_BYTES])
        if (number - 1) % SALT_BLOCK and not whole:
            raise AuditError(
                f"{path}: the salts of the records before {number} are gone, "
                "cut off or zeroed, and without them nobody can open those; put the file back"
            )

    def find(self, number: int) -> bytes | None:
        """Return the salt of a record, or None if it was erased or is not here."""
        path, offset = self._locate(number)
        salt = _read(path)[offset : offset + KEY_BYTES]
        return salt if _is_salt(salt) else None

    def find_lost(self, numbers: Iterable[int]) -> list[int]:
        """Return those of the records whose salts are erased, cut off or not here."""
        lost, known, block = list[int](), None, b""
        for number in numbers:
            path, offset = self._locate(number)
            if path != known:
                known, block = path, _read(path)
            if not _is_salt(block[offset : offset + KEY_BYTES]):
                lost.append(number)
        return lost

    def erase(self, numbers: list[int]) -> None:
        """Overwrite the records' salts with zeros on the disk, also while a server is running."""
        for number in numbers:
            path, offset = self._locate(number)
            if path.is_file():
                with descriptor_of(path, os.O_RDWR) as descriptor:
                    write_at(descriptor, bytes(KEY_BYTES), offset)
                    os.fsync(descriptor)

    def _locate(self, number: int) -> tuple[Path, int]:
        block, index = divmod(number - 1, SALT_BLOCK)
        return self.folder / f"{block + 1:06d}.bin", index * KEY_BYTES


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _is_salt(data: bytes) -> bool:
    return len(data) == KEY_BYTES and any(data)

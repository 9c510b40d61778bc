"""The master keys of an audit log: signing, and one key a record. They live outside the log, in the
keys folder.

keys.json        the masters, unless AEGIS_AUDIT_KEY holds them
salts/           32 random bytes a record (`salts.py`): without them the masters open nothing
head             the newest seal or checkpoint (`head.py`): the log may not be shorter
pending.json     notes that the log gets when it is next opened (`notes.py`)
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from aegis.audit.chain import key_id
from aegis.audit.private import make_private_folder, require_private, write_private
from aegis.errors import AuditError

FILE = "keys.json"
ENVIRONMENT = "AEGIS_AUDIT_KEY"
SIZE = 32  # bytes


def utc_now() -> str:
    """The time as the log writes it; for people, the order is that of the numbers."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def beside(log: Path) -> Path:
    """Where the keys of a log are looked for, unless something else is said."""
    return log.with_name(f"{log.name}.keys")


@dataclass(frozen=True, repr=False)
class MasterKey:
    """32 secret bytes from which everything else is derived by HKDF (RFC 5869), each use with an
    info of its own."""

    secret: bytes

    def __repr__(self) -> str:
        return f"MasterKey({self.id}, secret withheld)"

    @cached_property
    def _signer(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._derive(None, b"aegis audit signature v1"))

    @cached_property
    def public_key(self) -> str:
        """What checkpoints are verified with, in hexadecimal."""
        return self._signer.public_key().public_bytes_raw().hex()

    @cached_property
    def mac_key(self) -> bytes:
        """What seals are made and checked with; 32 bytes."""
        return self._derive(None, b"aegis audit seal v1")

    @cached_property
    def id(self) -> str:
        return key_id(self.public_key)

    def sign(self, message: bytes) -> bytes:
        return self._signer.sign(message)

    def record_key(self, salt: bytes, *, log: str, number: int) -> bytes:
        """The key of one record's commitments: not to be had without the record's salt."""
        return self._derive(
            salt, b"aegis audit record v1" + number.to_bytes(8, "big") + log.encode()
        )

    def _derive(self, salt: bytes | None, info: bytes) -> bytes:
        return HKDF(algorithm=SHA256(), length=SIZE, salt=salt, info=info).derive(self.secret)


@dataclass(frozen=True)
class AuditKeys:
    """The keys folder and its masters.

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

    def find(self, wanted: str) -> MasterKey | None:
        """The master with this id."""
        return next((master for master in self.masters if master.id == wanted), None)

    @classmethod
    def create(cls, folder: Path) -> AuditKeys:
        """A keys folder with one new master, on the disk.

        Raises:
            AuditError: if there is one already.
        """
        if (folder / FILE).exists():
            raise AuditError(
                f"{folder / FILE}: exists already; for a new key beside it run: aegis audit rotate"
            )
        make_private_folder(folder)
        return _store(folder, (MasterKey(secrets.token_bytes(SIZE)),))

    @classmethod
    def load(cls, folder: Path, environment: Mapping[str, str] = os.environ) -> AuditKeys:
        """The masters from AEGIS_AUDIT_KEY, if it is set, otherwise from `folder`/keys.json.

        Raises:
            AuditError: if there are none, if they are not keys, or if others can read the file.
        """
        if given := environment.get(ENVIRONMENT):
            return cls(folder, _parse(re.split(r"[\s,]+", given.strip()), where=ENVIRONMENT))
        path = folder / FILE
        if not path.is_file():
            raise AuditError(
                f"{path}: no such file; set {ENVIRONMENT}, name the folder with --keys, or run: aegis audit key new {folder}"
            )
        require_private(path)
        try:
            found = json.loads(path.read_bytes())
            texts = [str(key["secret"]) for key in found["keys"]]
        except (ValueError, KeyError, TypeError):
            raise AuditError(
                f"{path}: is not a file of audit keys; restore it from your copy"
            ) from None
        return cls(folder, _parse(texts, where=str(path)))

    def rotated(self) -> AuditKeys:
        """A new master that signs from the log's next opening on; on the disk, the old ones beside
        it.

        Raises:
            AuditError: if the keys are not in a file.
        """
        if not (self.folder / FILE).is_file():
            raise AuditError(
                f"the keys come from {ENVIRONMENT}: append a new one to it (openssl rand -hex {SIZE}), "
                "separated by a comma, and start the server again"
            )
        return _store(self.folder, (*self.masters, MasterKey(secrets.token_bytes(SIZE))))


def _store(folder: Path, masters: tuple[MasterKey, ...]) -> AuditKeys:
    old = {}
    if (folder / FILE).is_file():
        old = {key["id"]: key for key in json.loads((folder / FILE).read_bytes())["keys"]}
    keys = [
        old.get(
            master.id,
            {
                "id": master.id,
                "made": utc_now(),
                "public_key": master.public_key,
                "secret": master.secret.hex(),
            },
        )
        for master in masters
    ]
    write_private(
        folder / FILE, (json.dumps({"version": 1, "keys": keys}, indent=2) + "\n").encode()
    )
    return AuditKeys(folder, masters)


def _parse(texts: list[str], *, where: str) -> tuple[MasterKey, ...]:
    if not texts or any(not re.fullmatch(r"[0-9a-fA-F]{64}", text) for text in texts):
        raise AuditError(
            f"{where}: a master key must be {2 * SIZE} hexadecimal digits; make one with: openssl rand -hex {SIZE}"
        )
    return tuple(MasterKey(bytes.fromhex(text)) for text in texts)

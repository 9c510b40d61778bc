"""The chain of an audit log: JSON lines, each with the sha256 of the line before; seals and signed
checkpoints among them.

Every write to the disk ends with a seal, an HMAC that the owner recognises, or with a checkpoint, a
signature for everybody. A chain is a value: reading or adding a line gives the next one. It knows
nothing of files.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

VERSION = 1
START = "0" * 64
"""What stands for the hash of a line before the first."""

ENTRY, SEAL, CHECKPOINT = "entry", "seal", "checkpoint"
BEGIN, ACCEPTED, ROTATE, UNFINISHED, ERASED = "begin", "accepted", "rotate", "unfinished", "erased"
_EVERY = {"kind": str, "prev": str, "time": str}
_BEGINNING = {"after": int, "key": str, "log": str, "public_key": str, "version": int}
_FACTS = {"request_id": str, "decision": str, "escalated": bool, "model": str, "outcome": str}
FIELDS: dict[str, dict[str, type]] = {
    ENTRY: {"number": int, "key": str, "commitments": dict, **_FACTS},
    SEAL: {"after": int, "key": str, "log": str, "mac": str},
    CHECKPOINT: {"after": int, "key": str, "log": str, "signature": str},
    BEGIN: _BEGINNING,
    ACCEPTED: {**_BEGINNING, "reason": str, "problem": str, "files": dict},
    ROTATE: {"after": int, "new_key": str, "public_key": str},
    UNFINISHED: {"after": int, "bytes": int, "file": str, "sha256": str},
    ERASED: {"after": int, "numbers": list, "reason": str},
}
"""The fields of each kind of line, besides `kind`, `prev` and `time`."""

_SIGNED, _SEALED = b"aegis audit checkpoint v1\n", b"aegis audit seal v1\n"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class Damage(Exception):  # noqa: N818 - a finding; whoever reads a log makes an error of it that names file and line
    """A line is not what the chain asks for; the message says what differs."""


def canonical(fields: dict[str, Any]) -> bytes:
    """The one way in which a line is written: ASCII, sorted keys, no spaces, no line break."""
    return _encode(fields).encode("ascii")


def parse(raw: bytes) -> dict[str, Any]:
    """A line's fields.

    Raises:
        Damage: if it is not a line of an audit log.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise Damage("is not JSON") from None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("kind"), str)
        or canonical(found) != raw
    ):
        raise Damage("is not a line as an audit log writes it")
    fields = FIELDS.get(found["kind"], {}) | _EVERY
    if found["kind"] not in FIELDS or any(
        type(found.get(name)) is not kind for name, kind in fields.items()
    ):
        raise Damage(f"lacks what a line of kind {found['kind']!r} has")
    return found


def hash_line(raw: bytes) -> str:
    """sha256 of a line without its line break, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


@functools.lru_cache(maxsize=64)
def key_id(public_key: str) -> str:
    """The short name of a signing key."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def is_signed(checkpoint: Mapping[str, Any], public_key: str) -> bool:
    """True if the checkpoint carries a valid Ed25519 signature (RFC 8032) by the key."""
    message = _SIGNED + canonical(
        {key: value for key, value in checkpoint.items() if key != "signature"}
    )
    try:
        signature = bytes.fromhex(checkpoint["signature"])
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_sealed(seal: Mapping[str, Any], mac_key: bytes) -> bool:
    """True if the seal carries the HMAC-SHA256 that only the holder of the master can make."""
    unsealed = canonical({key: value for key, value in seal.items() if key != "mac"})
    return hmac.compare_digest(seal["mac"], _mac(unsealed, mac_key))


def _mac(unsealed: bytes, mac_key: bytes) -> str:
    return hmac.digest(mac_key, _SEALED + unsealed, "sha256").hex()


class Chain(NamedTuple):
    """Where a chain stands after its newest line.

    Args:
        log: the log's random name, which every checkpoint repeats.
        after: the number of the newest record.
        prev: hash of the newest line.
        public_key: what the next checkpoint has to be signed with, in hexadecimal; "" before the
            first line.
        next_key: the key that takes over after the next checkpoint, once a line has said so.
        trusted: the keys that the reader trusts, or None where it takes the log's word.
        vouched: the reader trusts `public_key`, or a key that it trusts named it.
        attested: the newest seal or checkpoint that could be checked is by such a key, and with it
            everything before.
        mac_keys: the owner's, by public key, to check seals with; others take them as they come.
    """

    log: str = ""
    after: int = 0
    prev: str = START
    public_key: str = ""
    next_key: str = ""
    trusted: frozenset[str] | None = None
    vouched: bool = False
    attested: bool = False
    mac_keys: Mapping[str, bytes] | None = None

    def proves(self, kind: str) -> bool:
        """True if the reader can tell a line of this kind from a forged one."""
        return kind == CHECKPOINT or (
            kind == SEAL and self.mac_keys is not None and self.public_key in self.mac_keys
        )

    def take(self, raw: bytes) -> tuple[dict[str, Any], Chain]:
        """A line's fields, and the chain with it.

        Raises:
            Damage: if the line is not the next one.
        """
        found = parse(raw)
        kind = found["kind"]
        if not self.public_key:
            return found, self._begin(found, kind)._replace(prev=hash_line(raw))
        self._require_place(found, kind)
        if kind in (SEAL, CHECKPOINT):
            return found, self._seal(found, kind)._replace(prev=hash_line(raw))
        if kind == ROTATE:
            return found, self._replace(next_key=_public_key(found), prev=hash_line(raw))
        return found, self._replace(after=self.after + (kind == ENTRY), prev=hash_line(raw))

    def _begin(self, found: Mapping[str, Any], kind: str) -> Chain:
        if kind not in (BEGIN, ACCEPTED):
            raise Damage(
                f"is a line of kind {kind!r} where the log should begin: what stood before is gone"
            )
        if found["version"] != VERSION:
            raise Damage(
                f"is of version {found['version']}, and this AEGIS reads version {VERSION}"
            )
        if found["prev"] != START:
            raise Damage("begins a log and yet carries the hash of a line before it")
        after, public_key = found["after"], _public_key(found)
        if after < 0 or (kind == BEGIN and after):
            raise Damage(f"begins after record {after}")
        vouched = self.trusted is not None and public_key in self.trusted
        return self._replace(log=found["log"], after=after, public_key=public_key, vouched=vouched)

    def _require_place(self, found: Mapping[str, Any], kind: str) -> None:
        """The line belongs here, by its number and by the hash that it carries."""
        if kind in (BEGIN, ACCEPTED):
            raise Damage(
                f"is a line of kind {kind!r} in the middle of a log: another log's line was inserted"
            )
        number, expected = (
            (found["number"], self.after + 1) if kind == ENTRY else (found["after"], self.after)
        )
        if number != expected:
            raise Damage(
                f"has the number {number} and {expected} belongs here: a line was dropped, inserted or moved"
            )
        if found["prev"] != self.prev:
            raise Damage(
                "does not carry the hash of the line before it: one of the two was changed, or one dropped"
            )

    def _seal(self, found: Mapping[str, Any], kind: str) -> Chain:
        if found["log"] != self.log or found["key"] != key_id(self.public_key):
            raise Damage(
                f"is a {kind} of log {found['log']} by key {found['key']}, not of this one"
            )
        if not self.proves(kind):
            return self
        if kind == SEAL:
            if not is_sealed(found, (self.mac_keys or {})[self.public_key]):
                raise Damage(f"is a seal that key {found['key']} did not make")
            return self._replace(attested=self.vouched)
        if not is_signed(found, self.public_key):
            raise Damage(f"is a checkpoint whose signature is not by key {found['key']}")
        if not self.next_key:
            return self._replace(attested=self.vouched)
        vouched = self.vouched or (self.trusted is not None and self.next_key in self.trusted)
        return self._replace(
            public_key=self.next_key, next_key="", vouched=vouched, attested=self.vouched
        )

    def begin(self, kind: str, *, time: str, **fields: Any) -> tuple[bytes, Chain]:
        """The first line of a log, or the first after an accepted break, and the chain with it."""
        facts = {
            "log": self.log,
            "after": self.after,
            "public_key": self.public_key,
            "version": VERSION,
        }
        raw = canonical(
            {
                **fields,
                **facts,
                "kind": kind,
                "key": key_id(self.public_key),
                "prev": START,
                "time": time,
            }
        )
        return raw, self._replace(prev=hash_line(raw))

    def add(self, kind: str, *, time: str, **fields: Any) -> tuple[bytes, Chain]:
        """The next line, and the chain with it."""
        after = self.after + (kind == ENTRY)
        place = {"number" if kind == ENTRY else "after": after}
        raw = canonical({**fields, **place, "kind": kind, "prev": self.prev, "time": time})
        next_key = fields["public_key"] if kind == ROTATE else self.next_key
        return raw, self._replace(after=after, prev=hash_line(raw), next_key=next_key)

    def seal(self, mac_key: bytes, *, time: str) -> tuple[bytes, Chain]:
        """A seal over all lines so far, and the chain with it."""
        unsealed = self._ending(SEAL, time)
        raw = _insert(
            unsealed, b'"mac":"%s",' % _mac(unsealed, mac_key).encode(), before=b'"prev":'
        )
        return raw, self._replace(prev=hash_line(raw))

    def sign(self, sign: Callable[[bytes], bytes], *, time: str) -> tuple[bytes, Chain]:
        """A checkpoint over all lines so far, and the chain with it; the next key, if one was
        named, takes over."""
        unsigned = self._ending(CHECKPOINT, time)
        raw = _insert(
            unsigned,
            b'"signature":"%s",' % sign(_SIGNED + unsigned).hex().encode(),
            before=b'"time":',
        )
        return raw, self._replace(
            prev=hash_line(raw), public_key=self.next_key or self.public_key, next_key=""
        )

    def _ending(self, kind: str, time: str) -> bytes:
        place = {
            "after": self.after,
            "log": self.log,
            "key": key_id(self.public_key),
            "prev": self.prev,
        }
        return canonical({**place, "kind": kind, "time": time})


def _insert(line: bytes, field: bytes, *, before: bytes) -> bytes:
    """The canonical line with one more field, at its place among the sorted keys."""
    at = line.rindex(before)
    return line[:at] + field + line[at:]


def _public_key(found: Mapping[str, Any]) -> str:
    value = found["public_key"]
    try:
        if len(bytes.fromhex(value)) == 32:
            return value
    except (TypeError, ValueError):
        pass
    raise Damage("names a public key that is none")

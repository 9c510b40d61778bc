"""The chain of an audit log: JSON lines, each with the sha256 of the line before.

Every write to the disk ends with a seal, an HMAC that the owner can check, or with a checkpoint, a
signature that everybody can check. A chain is a value: reading or adding a line gives the next one.
This module knows nothing of files.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

VERSION = 1
START = "0" * 64
"""The hash that the first line of a log carries."""


class Kind(StrEnum):
    """The kind of a line."""

    ENTRY = "entry"
    SEAL = "seal"
    CHECKPOINT = "checkpoint"
    BEGIN = "begin"
    ACCEPTED = "accepted"
    ROTATE = "rotate"
    UNFINISHED = "unfinished"
    ERASED = "erased"


_COMMON = {"kind": str, "prev": str, "time": str}
_FIRST = {"after": int, "key": str, "log": str, "public_key": str, "version": int}
_FACTS = {"request_id": str, "decision": str, "escalated": bool, "model": str, "outcome": str}
FIELDS: dict[str, dict[str, type]] = {
    Kind.ENTRY: {"number": int, "key": str, "commitments": dict, **_FACTS},
    Kind.SEAL: {"after": int, "key": str, "log": str, "mac": str},
    Kind.CHECKPOINT: {"after": int, "key": str, "log": str, "signature": str},
    Kind.BEGIN: _FIRST,
    Kind.ACCEPTED: {**_FIRST, "reason": str, "problem": str, "files": dict},
    Kind.ROTATE: {"after": int, "new_key": str, "public_key": str},
    Kind.UNFINISHED: {"after": int, "bytes": int, "file": str, "sha256": str},
    Kind.ERASED: {"after": int, "numbers": list, "reason": str},
}
"""The fields of each kind of line, besides `kind`, `prev` and `time`."""

Line = dict[str, Any]
_SIGNED, _SEALED = b"aegis audit checkpoint v1\n", b"aegis audit seal v1\n"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


class LineError(Exception):
    """A line is not the one that the chain needs; the message says what differs."""


def canonical(line: Mapping[str, Any]) -> bytes:
    """Encode a line in the one valid form: ASCII, sorted keys, no spaces, no line break."""
    return _encode(line).encode("ascii")


def parse(raw: bytes) -> Line:
    """Return a line's fields.

    Raises:
        LineError: if it is not a line of an audit log.
    """
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        raise LineError("is not JSON") from None
    kind = line.get("kind") if isinstance(line, dict) else None
    if not isinstance(kind, str) or canonical(line) != raw:
        raise LineError("is not a line as an audit log writes it")
    types = _COMMON | FIELDS.get(kind, {})
    if kind not in FIELDS or any(type(line.get(name)) is not types[name] for name in types):
        raise LineError(f"lacks what a line of kind {kind!r} has")
    return line


def hash_line(raw: bytes) -> str:
    """Return the sha256 of a line without its line break, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


@functools.lru_cache(maxsize=64)
def key_id(public_key: str) -> str:
    """Return the short name of a signing key."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def is_signed(checkpoint: Mapping[str, Any], public_key: str) -> bool:
    """Check a checkpoint's Ed25519 signature (RFC 8032)."""
    signed = canonical({name: checkpoint[name] for name in checkpoint if name != "signature"})
    try:
        signature = bytes.fromhex(checkpoint["signature"])
        verifier = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        verifier.verify(signature, _SIGNED + signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def is_sealed(seal: Mapping[str, Any], mac_key: bytes) -> bool:
    """Check a seal's HMAC-SHA256, which only the holder of the master key can make."""
    sealed = canonical({name: seal[name] for name in seal if name != "mac"})
    return hmac.compare_digest(seal["mac"], _mac(sealed, mac_key))


def _mac(sealed: bytes, mac_key: bytes) -> str:
    return hmac.digest(mac_key, _SEALED + sealed, "sha256").hex()


class Chain(NamedTuple):
    """The state of a chain after its newest line.

    Args:
        log: the log's random name, which every checkpoint repeats.
        after: the number of the newest record.
        prev: hash of the newest line.
        public_key: the key of the next checkpoint, in hexadecimal; "" before the first line.
        next_key: the key that takes over after the next checkpoint, once a line has named it.
        trusted: the keys that the reader trusts; None to believe the log.
        vouched: the reader trusts `public_key`, or a key that it trusts named it.
        attested: a vouched key made the newest seal or checkpoint that could be checked.
        mac_keys: the owner's, by public key, to check seals with; others cannot check them.
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

    def can_check(self, kind: str) -> bool:
        """Return whether the reader can tell a line of this kind from a forged one."""
        owned = self.mac_keys is not None and self.public_key in self.mac_keys
        return kind == Kind.CHECKPOINT or (kind == Kind.SEAL and owned)

    def read(self, raw: bytes) -> tuple[Line, Chain]:
        """Return a line's fields, and the chain with it.

        Raises:
            LineError: if the line is not the next one.
        """
        line = parse(raw)
        kind = line["kind"]
        if not self.public_key:
            chain = self._read_first(line)
        else:
            self._require_place(line)
            if kind in (Kind.SEAL, Kind.CHECKPOINT):
                chain = self._read_seal(line)
            elif kind == Kind.ROTATE:
                chain = self._replace(next_key=_public_key(line))
            else:
                chain = self._replace(after=self.after + (kind == Kind.ENTRY))
        return line, chain._replace(prev=hash_line(raw))

    def _read_first(self, line: Line) -> Chain:
        kind = line["kind"]
        if kind not in (Kind.BEGIN, Kind.ACCEPTED):
            raise LineError(
                f"is a line of kind {kind!r} where the log should begin: what stood before is gone"
            )
        if line["version"] != VERSION:
            version = line["version"]
            raise LineError(f"is of version {version}, and this AEGIS reads version {VERSION}")
        if line["prev"] != START:
            raise LineError("begins a log and yet carries the hash of a line before it")
        public_key, after = _public_key(line), line["after"]
        if after < 0 or (kind == Kind.BEGIN and after):
            raise LineError(f"begins after record {after}")
        vouched = self.trusted is not None and public_key in self.trusted
        return self._replace(log=line["log"], after=after, public_key=public_key, vouched=vouched)

    def _require_place(self, line: Line) -> None:
        """Check that the line belongs here, by its number and by the hash that it carries."""
        kind = line["kind"]
        if kind in (Kind.BEGIN, Kind.ACCEPTED):
            place = f"is a line of kind {kind!r} in the middle of a log"
            raise LineError(f"{place}: another log's line was inserted")
        number, expected = line.get("after"), self.after
        if kind == Kind.ENTRY:
            number, expected = line["number"], self.after + 1
        if number != expected:
            place = f"has the number {number} and {expected} belongs here"
            raise LineError(f"{place}: a line was dropped, inserted or moved")
        if line["prev"] != self.prev:
            lacks = "does not carry the hash of the line before it"
            raise LineError(f"{lacks}: one of the two was changed, or one dropped")

    def _read_seal(self, line: Line) -> Chain:
        kind, key = line["kind"], line["key"]
        if line["log"] != self.log or key != key_id(self.public_key):
            raise LineError(f"is a {kind} of log {line['log']} by key {key}, not of this one")
        if not self.can_check(kind):
            return self
        if kind == Kind.SEAL:
            if not is_sealed(line, (self.mac_keys or {})[self.public_key]):
                raise LineError(f"is a seal that key {key} did not make")
            return self._replace(attested=self.vouched)
        if not is_signed(line, self.public_key):
            raise LineError(f"is a checkpoint whose signature is not by key {key}")
        chain = self._replace(attested=self.vouched)
        if not self.next_key:
            return chain
        vouched = self.vouched or (self.trusted is not None and self.next_key in self.trusted)
        return chain._replace(public_key=self.next_key, next_key="", vouched=vouched)

    def begin(self, kind: str, *, time: str, **fields: Any) -> tuple[bytes, Chain]:
        """Return the first line of a log, or after an accepted break, and the chain with it."""
        key = {"key": key_id(self.public_key), "public_key": self.public_key}
        place = {"after": self.after, "log": self.log, "prev": START, "version": VERSION}
        return self._next(canonical({**fields, **key, **place, "kind": kind, "time": time}))

    def add(self, kind: str, *, time: str, **fields: Any) -> tuple[bytes, Chain]:
        """Return the next line, and the chain with it."""
        after = self.after + (kind == Kind.ENTRY)
        number = {"number" if kind == Kind.ENTRY else "after": after}
        raw = canonical({**fields, **number, "kind": kind, "prev": self.prev, "time": time})
        next_key = fields["public_key"] if kind == Kind.ROTATE else self.next_key
        return self._next(raw, after=after, next_key=next_key)

    def seal(self, mac_key: bytes, *, time: str) -> tuple[bytes, Chain]:
        """Return a seal over all lines so far, and the chain with it."""
        sealed = self._ending(Kind.SEAL, time)
        mac = b'"mac":"%s",' % _mac(sealed, mac_key).encode()
        return self._next(_insert(sealed, mac, before=b'"prev":'))

    def sign(self, sign: Callable[[bytes], bytes], *, time: str) -> tuple[bytes, Chain]:
        """Return a checkpoint over all lines so far, and the chain with it.

        The next key, if one was named, takes over.
        """
        signed = self._ending(Kind.CHECKPOINT, time)
        signature = b'"signature":"%s",' % sign(_SIGNED + signed).hex().encode()
        raw, chain = self._next(_insert(signed, signature, before=b'"time":'))
        return raw, chain._replace(public_key=self.next_key or self.public_key, next_key="")

    def _ending(self, kind: str, time: str) -> bytes:
        key = key_id(self.public_key)
        place = {"after": self.after, "key": key, "log": self.log, "prev": self.prev}
        return canonical({**place, "kind": kind, "time": time})

    def _next(self, raw: bytes, **changes: Any) -> tuple[bytes, Chain]:
        return raw, self._replace(prev=hash_line(raw), **changes)


def _insert(line: bytes, field: bytes, *, before: bytes) -> bytes:
    """Add a field to a canonical line at its place among the sorted keys."""
    at = line.rindex(before)
    return line[:at] + field + line[at:]


def _public_key(line: Line) -> str:
    try:
        if len(bytes.fromhex(line["public_key"])) == 32:
            return line["public_key"]
    except ValueError:
        pass
    raise LineError("names a public key that is none")

"""The chain of an audit log: JSON lines, each with the sha256 of the line before, and signed checkpoints among them.

A chain is a value: reading or adding a line gives the next one. It knows nothing of files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

VERSION = 1
START = "0" * 64
"""What stands for the hash of a line before the first."""

ENTRY, CHECKPOINT = "entry", "checkpoint"
BEGIN, ACCEPTED, ROTATE, UNFINISHED, ERASED = "begin", "accepted", "rotate", "unfinished", "erased"
KINDS = (ENTRY, CHECKPOINT, BEGIN, ACCEPTED, ROTATE, UNFINISHED, ERASED)

_DOMAIN = b"aegis audit checkpoint v1\n"


class Damage(Exception):  # noqa: N818 - a finding; whoever reads a log makes an error of it that names file and line
    """A line is not what the chain asks for; the message says what differs."""


def canonical(fields: Mapping[str, Any]) -> bytes:
    """The one way in which a line is written: ASCII, sorted keys, no spaces, no line break."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(raw: bytes) -> dict[str, Any]:
    """A line's fields.

    Raises:
        Damage: if it is not a line of an audit log.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        raise Damage("is not JSON") from None
    if not isinstance(found, dict) or found.get("kind") not in KINDS or canonical(found) != raw:
        raise Damage("is not a line as an audit log writes it")
    return found


def hash_line(raw: bytes) -> str:
    """sha256 of a line without its line break, in hexadecimal."""
    return hashlib.sha256(raw).hexdigest()


def key_id(public_key: str) -> str:
    """The short name of a signing key."""
    return hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:16]


def signed_part(checkpoint: Mapping[str, Any]) -> bytes:
    """The bytes that a checkpoint's signature is over."""
    return _DOMAIN + canonical({key: value for key, value in checkpoint.items() if key != "signature"})


def is_signed(checkpoint: Mapping[str, Any], public_key: str) -> bool:
    """True if the checkpoint carries a valid Ed25519 signature (RFC 8032) by the key."""
    try:
        signature = bytes.fromhex(checkpoint["signature"])
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key)).verify(signature, signed_part(checkpoint))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Chain:
    """Where a chain stands after its newest line.

    Args:
        log: the log's random name, which every checkpoint repeats.
        after: the number of the newest record.
        prev: hash of the newest line.
        public_key: what the next checkpoint has to be signed with, in hexadecimal; "" before the first line.
        next_key: the key that takes over after the next checkpoint, once a line has said so.
        trusted: the keys that the reader trusts, or None where it takes the log's word.
        vouched: the reader trusts `public_key`, or a key that it trusts named it.
        attested: the newest checkpoint was signed by such a key, and with it everything before.
    """

    log: str = ""
    after: int = 0
    prev: str = START
    public_key: str = ""
    next_key: str = ""
    trusted: frozenset[str] | None = None
    vouched: bool = False
    attested: bool = False

    def take(self, raw: bytes, *, check_signature: bool = True) -> tuple[dict[str, Any], Chain]:
        """A line's fields, and the chain with it.

        Raises:
            Damage: if the line is not the next one.
        """
        found = parse(raw)
        kind = found["kind"]
        try:
            if not self.public_key:
                begun = self._begin(found, kind)
                return found, replace(begun, prev=hash_line(raw))
            self._require_place(found, kind)
            if kind == CHECKPOINT:
                return found, replace(self._seal(found, check_signature), prev=hash_line(raw))
            if kind == ROTATE:
                return found, replace(self, next_key=_public_key(found), prev=hash_line(raw))
            return found, replace(self, after=self.after + (kind == ENTRY), prev=hash_line(raw))
        except KeyError as error:
            raise Damage(f"has no {error.args[0]}") from None

    def _begin(self, found: Mapping[str, Any], kind: str) -> Chain:
        if kind not in (BEGIN, ACCEPTED):
            raise Damage(f"is a line of kind {kind!r} where the log should begin: what stood before is gone")
        if found.get("version") != VERSION:
            raise Damage(f"is of version {found.get('version')!r}, and this AEGIS reads version {VERSION}")
        if found["prev"] != START:
            raise Damage("begins a log and yet carries the hash of a line before it")
        after, public_key = found["after"], _public_key(found)
        if type(after) is not int or after < 0 or (kind == BEGIN and after):
            raise Damage(f"begins after record {after!r}")
        vouched = self.trusted is not None and public_key in self.trusted
        return replace(self, log=str(found["log"]), after=after, public_key=public_key, vouched=vouched)

    def _require_place(self, found: Mapping[str, Any], kind: str) -> None:
        """The line belongs here, by its number and by the hash that it carries."""
        if kind in (BEGIN, ACCEPTED):
            raise Damage(f"is a line of kind {kind!r} in the middle of a log: another log's line was inserted")
        number, expected = (found["number"], self.after + 1) if kind == ENTRY else (found["after"], self.after)
        if type(number) is not int or number != expected:
            raise Damage(f"has the number {number!r} and {expected} belongs here: a line was dropped, inserted or moved")
        if found["prev"] != self.prev:
            raise Damage("does not carry the hash of the line before it: one of the two was changed, or one dropped")

    def _seal(self, found: Mapping[str, Any], check_signature: bool) -> Chain:
        if found["log"] != self.log or found["key"] != key_id(self.public_key):
            raise Damage(f"is a checkpoint of log {found['log']!r} by key {found['key']!r}, not of this one")
        if check_signature and not is_signed(found, self.public_key):
            raise Damage(f"is a checkpoint whose signature is not by key {found['key']}")
        attested = self.vouched
        if not self.next_key:
            return self if self.attested == attested else replace(self, attested=attested)
        vouched = attested or (self.trusted is not None and self.next_key in self.trusted)
        return replace(self, public_key=self.next_key, next_key="", vouched=vouched, attested=attested)

    def begin(self, kind: str, *, time: str, **fields: Any) -> tuple[bytes, Chain]:
        """The first line of a log, or the first after an accepted break, and the chain with it."""
        facts = {"log": self.log, "after": self.after, "public_key": self.public_key, "version": VERSION}
        raw = canonical({**fields, **facts, "kind": kind, "key": key_id(self.public_key), "prev": START, "time": time})
        return raw, replace(self, prev=hash_line(raw))

    def add(self, kind: str, *, time: str, **fields: Any) -> tuple[bytes, Chain]:
        """The next line, and the chain with it."""
        after = self.after + (kind == ENTRY)
        place = {"number" if kind == ENTRY else "after": after}
        raw = canonical({**fields, **place, "kind": kind, "prev": self.prev, "time": time})
        next_key = fields["public_key"] if kind == ROTATE else self.next_key
        return raw, replace(self, after=after, prev=hash_line(raw), next_key=next_key)

    def seal(self, sign: Callable[[bytes], bytes], *, time: str) -> tuple[bytes, Chain]:
        """A checkpoint over all lines so far, and the chain with it."""
        place = {"after": self.after, "log": self.log, "key": key_id(self.public_key), "prev": self.prev}
        unsigned = {**place, "kind": CHECKPOINT, "time": time}
        raw = canonical({**unsigned, "signature": sign(signed_part(unsigned)).hex()})
        return raw, replace(self, prev=hash_line(raw), public_key=self.next_key or self.public_key, next_key="")


def _public_key(found: Mapping[str, Any]) -> str:
    value = found["public_key"]
    try:
        if len(bytes.fromhex(value)) == 32:
            return value
    except (TypeError, ValueError):
        pass
    raise Damage("names a public key that is none")

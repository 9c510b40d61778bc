"""Bearer tokens: a file of hashes, read again whenever it changes, so that a revoked token is
refused at once."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import TypeAdapter

from aegis.errors import BadInputError
from aegis.storage.files import make_folder, to_json, write_text

Scope = Literal["ask", "review", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
_TOKEN = re.compile(r"aegis_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True)
class Token:
    """One entry of the file. The token itself is 256 random bits, so that a plain SHA-256 of it
    gives nothing away."""

    id: str
    name: str
    scopes: tuple[Scope, ...]
    sha256: str
    created: str
    revoked: str | None = None


_TOKENS = TypeAdapter(list[Token])


class TokenFile:
    """Who may come in.

    Raises:
        BadInputError: if the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version, self._tokens = _version(path), read_tokens(path)

    def find(self, presented: str) -> Token | None:
        """Return the token that was presented, if it is known and not revoked.

        Raises:
            BadInputError: if the file has become unreadable; nobody comes in then.
        """
        if (version := _version(self.path)) != self._version:
            self._tokens, self._version = read_tokens(self.path), version
        match = _TOKEN.fullmatch(presented)
        for token in self._tokens:
            if match and token.id == match.group(1):
                known = hmac.compare_digest(token.sha256, _digest(presented))
                return token if known and not token.revoked else None
        return None


def read_tokens(path: Path) -> list[Token]:
    """Return every token of the file, revoked ones too.

    Raises:
        BadInputError: if it is missing or damaged.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["tokens"]
        tokens = [asdict(Token(**{**row, "scopes": _scopes(row["scopes"])})) for row in rows]
        return _TOKENS.validate_python(tokens)
    except FileNotFoundError:
        raise BadInputError(
            f"{path}: no such token file; make one with `aegis token new NAME --tokens {path}`"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadInputError(
            f"{path}: is no token file; make one with `aegis token new NAME --tokens FILE`"
        ) from error


def new_token(path: Path, name: str, scopes: Sequence[str]) -> str:
    """Add a token to the file, made if it is not there, and return it: the one time that it is
    seen.

    Raises:
        BadInputError: if the name or a scope is impossible, or the name is taken.
    """
    if not _NAME.fullmatch(name):
        raise BadInputError(
            f"token name must be 1 to 64 letters, digits or ._@-, got {name!r}; choose another"
        )
    known_scopes = _scopes(scopes)
    tokens = read_tokens(path) if path.exists() else []
    if any(token.name == name and not token.revoked for token in tokens):
        raise BadInputError(
            f"token name {name!r} is taken; revoke that token first or choose another name"
        )
    taken = {token.id for token in tokens}
    id = next(id for id in iter(lambda: secrets.token_hex(4), None) if id not in taken)
    secret = f"aegis_{id}_{secrets.token_urlsafe(32)}"
    _write(path, [*tokens, Token(id, name, known_scopes, _digest(secret), _now())])
    return secret


def revoke(path: Path, name: str) -> None:
    """Let the token of that name, or id, open nothing any more.

    Raises:
        BadInputError: if there is none.
    """
    tokens = read_tokens(path)
    revoked = {token.id for token in tokens if name in (token.name, token.id) and not token.revoked}
    if not revoked:
        raise BadInputError(f"{path}: has no valid token {name!r}; see `aegis token list`")
    now = _now()
    _write(
        path, [replace(token, revoked=now) if token.id in revoked else token for token in tokens]
    )


def _write(path: Path, tokens: Sequence[Token]) -> None:
    make_folder(path.resolve().parent)
    before = os.umask(0o077)
    try:
        write_text(path.resolve(), to_json({"tokens": [asdict(token) for token in tokens]}))
    finally:
        os.umask(before)


def _scopes(named: Sequence[str]) -> tuple[Scope, ...]:
    unknown = [scope for scope in named if scope not in SCOPES]
    if unknown or not named:
        got = ", ".join(map(repr, unknown)) or "none"
        raise BadInputError(f"scope must be one of {', '.join(SCOPES)}, got {got}")
    return tuple(scope for scope in SCOPES if scope in named)


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")

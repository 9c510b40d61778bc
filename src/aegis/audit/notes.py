"""Notes that the log gets when it is next opened: what was done to it, or beside it, while nobody
was writing it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aegis.audit.private import make_private_folder, write_private
from aegis.errors import AuditError

FILE = "pending.json"


def pending(folder: Path) -> list[dict[str, Any]]:
    """The notes in order, each with its `kind`.

    Raises:
        AuditError: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, list) and all(
            isinstance(note, dict) and isinstance(note.get("kind"), str) for note in found
        ):
            return found
    except ValueError:
        pass
    raise AuditError(f"{path}: is not a list of notes; read it, then move it away")


def add_note(folder: Path, note: dict[str, Any]) -> None:
    """The note is on the disk; giving the same one again changes nothing."""
    notes = pending(folder)
    if note not in notes:
        make_private_folder(folder)
        write_private(folder / FILE, json.dumps([*notes, note], indent=2).encode())


def forget(folder: Path) -> None:
    """The notes are in the log."""
    (folder / FILE).unlink(missing_ok=True)

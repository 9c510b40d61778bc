"""Artifact folders: the only thing that passes between stages, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aegis.durable.files import disk_full_explained, hash_file, make_folder, sync_file, sync_folder, to_json, write_json
from aegis.durable.files import fingerprint as _fingerprint
from aegis.errors import ArtifactError, BadInputError

MANIFEST = "manifest.json"
_VERSION = 2


@dataclass(frozen=True)
class Manifest:
    """What made the folder (`fingerprint`), what it is (`kind`), and the sha256 of every file in it."""

    kind: str
    fingerprint: str
    files: dict[str, str]


@contextlib.contextmanager
def writing(target: Path, *, kind: str, fingerprint: str) -> Iterator[Path]:
    """Yield a staging folder that becomes `target` when the block ends well, and vanishes when it does not.

    Order: every file fsynced → hashed manifest last → folder fsynced → rename → parent fsynced. An older artifact of
    the same name stays whole until the new one is complete.

    Raises:
        DiskFullError: if there is no room; an older artifact is intact.
    """
    make_folder(target.parent)
    staging, old = target.with_name(f".{target.name}.writing"), target.with_name(f".{target.name}.old")
    _recover(target, old)
    _remove(staging)
    with disk_full_explained(target):
        try:
            staging.mkdir()
            yield staging
            _seal(staging, kind=kind, fingerprint=fingerprint)
            if target.exists():
                target.rename(old)
            staging.rename(target)
            sync_folder(target.parent)
        except BaseException:
            _remove(staging)
            _recover(target, old)
            raise
    _remove(old)


def verify(folder: Path) -> Manifest:
    """Return the manifest of a folder whose every file is as it was written.

    Raises:
        ArtifactError: if the manifest is absent or unreadable, or a file is missing, extra, changed or unreadable.
    """
    manifest = read_manifest(folder)
    try:
        _compare(folder, manifest)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be read ({error.strerror or error}); check the disk") from error
    return manifest


def _compare(folder: Path, manifest: Manifest) -> None:
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found.pop(MANIFEST, None)
    if missing := sorted(manifest.files.keys() - found.keys()):
        raise ArtifactError(f"{folder}: {missing[0]} is missing; run the stage that writes this folder again")
    if extra := sorted(found.keys() - manifest.files.keys()):
        raise ArtifactError(f"{folder}: {extra[0]} was not written with the rest; move it elsewhere")
    for name, digest in manifest.files.items():
        if hash_file(found[name]) != digest:
            raise ArtifactError(f"{folder}: {name} has changed since it was written; run the stage again")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest without checking the files.

    Raises:
        ArtifactError: if it is absent or unreadable.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text)
        if text != to_json(raw) or raw.pop("digest") != _fingerprint(raw):
            raise ValueError("changed since it was written")
        return Manifest(kind=raw["kind"], fingerprint=raw["fingerprint"], files=dict(raw["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: not a readable manifest; run the stage that writes this folder again") from error


def is_current(folder: Path, fingerprint: str) -> bool:
    """True if the folder is whole and was made by exactly what `fingerprint` stands for."""
    _recover(folder, folder.with_name(f".{folder.name}.old"))
    try:
        return was_made_by(folder, fingerprint) and bool(verify(folder))
    except ArtifactError:
        return False


def was_made_by(folder: Path, fingerprint: str) -> bool:
    """True if the folder's manifest says so; its files are not read."""
    try:
        return read_manifest(folder).fingerprint == fingerprint
    except ArtifactError:
        return False


def require_output(target: Path, *, kind: str, inputs: Iterable[Path] = ()) -> None:
    """`target` may be written: it is absent, an empty folder, or an artifact of the same kind, and holds no input.

    Raises:
        BadInputError: if it is anything else; nothing has been touched.
    """
    place = target.absolute()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadInputError(f"{target}: is not a folder; give a new folder")
    for path in inputs:
        if place.resolve() == path.resolve() or place.resolve() in path.resolve().parents:
            raise BadInputError(f"{target}: holds the input {path}; give another folder")
    if not place.name or place == Path.cwd():
        raise BadInputError(f"{target}: cannot be replaced as a whole; give a folder below it")
    if not target.exists() or not any(target.iterdir()):
        return
    try:
        found = read_manifest(target).kind
    except ArtifactError:
        found = None
    if found != kind:
        raise BadInputError(f"{target}: holds something other than earlier {kind}; give an empty or new folder")


def adopt(target: Path, candidates: Iterable[Path], fingerprint: str) -> bool:
    """Make `target` a copy (hard links where possible) of a whole artifact with this fingerprint; False if there is none."""
    for folder in candidates:
        if folder != target and is_current(folder, fingerprint):
            with writing(target, kind=read_manifest(folder).kind, fingerprint=fingerprint) as staging:
                for name in read_manifest(folder).files:
                    (staging / name).parent.mkdir(parents=True, exist_ok=True)
                    _link(folder / name, staging / name)
            return True
    return False


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _seal(staging: Path, *, kind: str, fingerprint: str) -> None:
    files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
    hashes = {path.relative_to(staging).as_posix(): hash_file(path) for path in files}
    for path in files:
        path.chmod(staging.stat().st_mode & 0o666)  # some writers leave files that only their owner reads
        sync_file(path)
    for folder in sorted((path for path in staging.rglob("*") if path.is_dir()), reverse=True):
        sync_folder(folder)
    content = {"version": _VERSION, "kind": kind, "fingerprint": fingerprint, "files": hashes}
    write_json(staging / MANIFEST, {**content, "digest": _fingerprint(content)})
    sync_folder(staging)


def _recover(target: Path, old: Path) -> None:
    """Finish or undo a replacement that was cut between its two renames."""
    if old.exists() and not target.exists():
        old.rename(target)
        sync_folder(target.parent)
    elif old.exists():
        _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)

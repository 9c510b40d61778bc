"""Artifact folders, which pass between stages: written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aegis.errors import ArtifactError, BadInputError
from aegis.storage.files import (
    disk_full_explained,
    hash_file,
    make_folder,
    set_aside,
    start_sync,
    sync_file,
    sync_folder,
    to_json,
    write_synced,
    write_text,
)
from aegis.storage.files import fingerprint as fingerprint_of

MANIFEST = "manifest.json"
_MARK = ".writing"  # in a folder that is being written: whoever finds it may remove the folder
_VERSION = 2


@dataclass(frozen=True)
class Manifest:
    """The content of an artifact folder's manifest.json.

    Args:
        kind: what the folder is.
        fingerprint: what it was made of.
        files: sha256 of every file as it was first written. Later stages go by these, so that a
            revision makes nothing stale.
        revised: sha256 of the contents that a file may have after `revise`.
        facts: what the writer wants to read again.
    """

    kind: str
    fingerprint: str
    files: dict[str, str]
    revised: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def writing(
    target: Path,
    *,
    kind: str,
    fingerprint: str,
    facts: dict[str, Any] | None = None,
    like: Manifest | None = None,
) -> Iterator[Path]:
    """Yield a staging folder that becomes `target` when the block ends well, else vanishes.

    Order: every file fsynced → hashed manifest last → folder fsynced → rename → parent fsynced. An
    older artifact of the same name stays whole until the new one is complete, and where it holds
    what no writer wrote (`stranger`), it stays for good, as NAME.replaced.

    Args:
        like: the manifest of the artifact that the new one is a copy of.

    Raises:
        DiskFullError: if there is no room; an older artifact is intact.
    """
    make_folder(target.parent)
    staging, old = _beside(target)
    _recover(target)
    _dispose(staging, target)
    _dispose(old, target)
    with disk_full_explained(target):
        try:
            staging.mkdir()
            (staging / _MARK).touch()
            yield staging
            _write_manifest(staging, like or Manifest(kind, fingerprint, {}, facts=facts or {}))
            if target.exists():
                target.rename(old)
            staging.rename(target)
            sync_folder(target.parent)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            _recover(target, certain=True)
            raise
    _dispose(old, target)


def verify(folder: Path, *, strict: bool = True) -> Manifest:
    """Return the manifest of a folder whose every file is as it was written.

    Neither an artifact inside the folder, with a manifest of its own, is part of it, nor what a
    cut-off writer left, nor, if not `strict`, any file that the manifest does not name.

    Raises:
        ArtifactError: if the manifest is absent or unreadable, or a file is missing, extra, changed
            or unreadable.
    """
    manifest = read_manifest(folder)
    try:
        _compare(folder, manifest, strict)
    except OSError as error:
        raise ArtifactError(
            f"{folder}: cannot be read ({error.strerror or error}); check the disk"
        ) from error
    return manifest


def _compare(folder: Path, manifest: Manifest, strict: bool) -> None:
    paths = _own_files(folder)
    if missing := sorted(manifest.files.keys() - paths.keys()):
        raise _missing(folder, missing[0])
    if strict and (extra := sorted(paths.keys() - manifest.files.keys())):
        problem = f"{extra[0]} was not written with the rest"
        raise ArtifactError(f"{folder}: {problem}; move it elsewhere")
    for name, digest in manifest.files.items():
        if hash_file(paths[name]) not in (digest, *manifest.revised.get(name, ())):
            raise ArtifactError(
                f"{folder}: {name} has changed since it was written; run the stage again"
            )


def _missing(folder: Path, name: str) -> ArtifactError:
    return ArtifactError(
        f"{folder}: {name} is missing; run the stage that writes this folder again"
    )


def _own_files(folder: Path) -> dict[str, Path]:
    """Return the files that the folder's manifest answers for, by their names in it."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    inner = [name.parent for name in paths if name.name == MANIFEST and name.parent.name]
    inner.append(Path(MANIFEST))
    return {
        name.as_posix(): path
        for name, path in paths.items()
        if not _is_transient(name) and not any(name.is_relative_to(other) for other in inner)
    }


def _is_transient(name: Path) -> bool:
    return any(
        part == ".lock" or (part[0] == "." and part.endswith((".writing", ".old")))
        for part in name.parts
    )


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest without checking the files.

    Raises:
        ArtifactError: if it is absent or unreadable.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        raw: dict[str, Any] = json.loads(text)
        if text != to_json(raw) or raw.pop("digest") != fingerprint_of(raw):
            raise ValueError("changed since it was written")
        revised = {name: list(digests) for name, digests in raw.get("revised", {}).items()}
        facts = dict(raw.get("facts", {}))
        return Manifest(raw["kind"], raw["fingerprint"], dict(raw["files"]), revised, facts)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path}: not a readable manifest; run the stage that writes this folder again"
        ) from error


def is_current(folder: Path, fingerprint: str) -> bool:
    """Return whether the folder is whole and made of this; what else lies in it is no matter."""
    _recover(folder)
    try:
        return was_made_by(folder, fingerprint) and bool(verify(folder, strict=False))
    except ArtifactError:
        return False


def was_made_by(folder: Path, fingerprint: str) -> bool:
    """Return whether the manifest has this fingerprint; the files are not read."""
    try:
        return read_manifest(folder).fingerprint == fingerprint
    except ArtifactError:
        return False


def require_output(target: Path, *, kind: str, inputs: Iterable[Path] = ()) -> None:
    """Check that `target` is absent, empty or an artifact of this kind alone, and holds no input.

    Raises:
        BadInputError: if it is anything else; nothing has been touched.
    """
    absolute, resolved = target.absolute(), target.resolve()
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadInputError(f"{target}: is not a folder; give a new folder")
    for path in inputs:
        if resolved in (path.resolve(), *path.resolve().parents):
            raise BadInputError(f"{target}: holds the input {path}; give another folder")
    if not absolute.name or absolute == Path.cwd() or target.is_mount():
        raise BadInputError(f"{target}: cannot be replaced as a whole; give a folder below it")
    for folder in _beside(target):
        if not _is_disposable(folder):
            raise BadInputError(f"{folder}: is in the way of {target}; move it elsewhere")
    if not target.exists() or not any(target.iterdir()):
        return
    with contextlib.suppress(ArtifactError):
        if read_manifest(target).kind == kind:
            if name := stranger(target):
                raise BadInputError(f"{target}: would lose {name}; move it or give a new folder")
            return
    raise BadInputError(
        f"{target}: holds something other than earlier {kind}; give an empty or new folder"
    )


def adopt(target: Path, candidates: Iterable[Path], fingerprint: str) -> bool:
    """Make `target` a copy, by hard links where possible, of a whole artifact.

    Returns:
        False if no candidate is whole and has the fingerprint.
    """
    for folder in candidates:
        if folder == target or not is_current(folder, fingerprint):
            continue
        manifest = read_manifest(folder)
        strangers = {MANIFEST, *(_own_files(folder).keys() - manifest.files.keys())}
        with writing(target, kind=manifest.kind, fingerprint=fingerprint, like=manifest) as staging:
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = path.relative_to(folder)
                if name.as_posix() not in strangers and not _is_transient(name):
                    link(path, staging / name)
        return True
    return False


def revise(folder: Path, name: str, text: str) -> None:
    """Replace the text of one file in a finished artifact, unless the file has it already.

    Cut anywhere, the folder is whole with the old content or the new one. Fingerprint and hashes
    stay: a later finding about an artifact does not make it another one.

    Raises:
        ArtifactError: if the folder has no such file.
        DiskFullError: if there is no room; the old content is intact.
    """
    manifest = read_manifest(folder)
    if name not in manifest.files or not (folder / name).is_file():
        raise _missing(folder, name)
    digests = [hash_file(folder / name), hashlib.sha256(text.encode()).hexdigest()]
    if digests[0] == digests[1]:
        return
    manifest = replace(manifest, revised={**manifest.revised, name: digests})
    write_text(folder / MANIFEST, _manifest_text(manifest))
    write_text(folder / name, text)


def link(source: Path, target: Path) -> None:
    """Give `target` the content of `source` by a hard link where possible, else by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_manifest(staging: Path, manifest: Manifest) -> None:
    """Make the folder durable, its manifest last; hash the files if the manifest has no hashes."""
    files = [path for path in sorted(staging.rglob("*")) if path.is_file()]
    for path in files:
        start_sync(path)  # the disk works while the hashes are computed
    if not manifest.files:
        hashes = {name: hash_file(path) for name, path in _own_files(staging).items()}
        manifest = replace(manifest, files=hashes)
    mode = staging.stat().st_mode & 0o666
    for path in files:
        path.chmod(mode)  # some writers leave files that only their owner reads
        sync_file(path)
    for folder in sorted((path for path in staging.rglob("*") if path.is_dir()), reverse=True):
        sync_folder(folder)
    write_synced(staging / MANIFEST, _manifest_text(manifest).encode())
    (staging / _MARK).unlink(missing_ok=True)
    sync_folder(staging)


def _manifest_text(manifest: Manifest) -> str:
    content: dict[str, Any] = {"version": _VERSION, **asdict(manifest)}
    for name in ("revised", "facts"):
        if not content[name]:
            del content[name]
    return to_json({**content, "digest": fingerprint_of(content)})


def _beside(target: Path) -> tuple[Path, Path]:
    """Return where the target's next content is being written, and where its last one waits."""
    return target.with_name(f".{target.name}.writing"), target.with_name(f".{target.name}.old")


def _recover(target: Path, *, certain: bool = False) -> None:
    """Finish or undo a replacement that was cut, as a manifest says unless it is `certain`."""
    old = _beside(target)[1]
    if not (old.exists() if certain else (old / MANIFEST).is_file()):
        return
    if target.exists():
        _dispose(old, target)
    else:
        old.rename(target)
        sync_folder(target.parent)


def stranger(folder: Path) -> str | None:
    """Return the first file in it, an inner artifact's too, that its manifest does not name."""
    known = set[str]()
    with contextlib.suppress(ArtifactError):
        known = {MANIFEST, *read_manifest(folder).files}
    paths = (path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(folder).as_posix() for path in paths if path.name != ".lock")
    return next((name for name in names if name not in known), None)


def _is_disposable(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return not os.path.lexists(folder)
    return (folder / _MARK).is_file() or stranger(folder) is None


def _dispose(folder: Path, target: Path) -> None:
    """Remove a folder of ours; set aside what holds anything else."""
    if not _is_disposable(folder):
        set_aside(folder, "replaced", name=target.name)
    elif folder.exists():  # what tells that it is ours goes last
        for path in sorted(folder.iterdir(), key=lambda path: path.name in (MANIFEST, _MARK)):
            (shutil.rmtree if path.is_dir() and not path.is_symlink() else Path.unlink)(path)
        folder.rmdir()

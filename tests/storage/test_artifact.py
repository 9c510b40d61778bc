from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from aegis.errors import ArtifactError, BadInputError, DiskFullError
from aegis.storage import artifact
from aegis.storage.artifact import (
    MANIFEST,
    adopt,
    is_current,
    read_manifest,
    require_output,
    revise,
    verify,
    writing,
)
from aegis.storage.files import write_text


def write(target: Path, text: str = "content", fingerprint: str = "f1") -> None:
    with writing(target, kind="test", fingerprint=fingerprint) as staging:
        (staging / "a.txt").write_text(text)
        (staging / "sub").mkdir()
        (staging / "sub" / "b.bin").write_bytes(bytes(range(256)))


def test_a_written_folder_verifies_and_is_current(tmp_path: Path) -> None:
    write(tmp_path / "x")
    assert set(verify(tmp_path / "x").files) == {"a.txt", "sub/b.bin"}
    assert is_current(tmp_path / "x", "f1")
    assert not is_current(tmp_path / "x", "f2")
    assert not is_current(tmp_path / "none", "f1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    write(tmp_path / "x")
    for name in ("a.txt", "sub/b.bin"):
        path = tmp_path / "x" / name
        whole = path.read_bytes()
        for damaged in [bytes([whole[0] ^ 1]) + whole[1:], whole[:-1], b"", whole + b"x"]:
            path.write_bytes(damaged)
            with pytest.raises(ArtifactError, match="has changed"):
                verify(tmp_path / "x")
            assert not is_current(tmp_path / "x", "f1")
        path.write_bytes(whole)
    assert is_current(tmp_path / "x", "f1")


def test_missing_and_extra_files_are_found(tmp_path: Path) -> None:
    write(tmp_path / "x")
    (tmp_path / "x" / "extra").write_text("")
    with pytest.raises(ArtifactError, match="extra was not written"):
        verify(tmp_path / "x")
    (tmp_path / "x" / "extra").rename(tmp_path / "extra")
    (tmp_path / "x" / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a.txt is missing"):
        verify(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "x"}'])
def test_an_unreadable_manifest_is_told(tmp_path: Path, text: str) -> None:
    write(tmp_path / "x")
    (tmp_path / "x" / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match="not a readable manifest"):
        verify(tmp_path / "x")


def test_an_error_inside_leaves_the_old_artifact(tmp_path: Path) -> None:
    write(tmp_path / "x")

    def fail() -> None:
        with writing(tmp_path / "x", kind="test", fingerprint="f2") as staging:
            (staging / "half").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert is_current(tmp_path / "x", "f1")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_new_artifact_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "x")
    write(tmp_path / "x", "new", "f2")
    assert is_current(tmp_path / "x", "f2")
    assert (tmp_path / "x" / "a.txt").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_cut_between_the_two_renames_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "x")
    os.rename(tmp_path / "x", tmp_path / ".x.old")  # what a power cut between the renames leaves
    assert is_current(tmp_path / "x", "f1")
    write(tmp_path / "x", "new", "f2")
    os.rename(tmp_path / "x", tmp_path / "y")
    write(tmp_path / ".x.old", "older", "f1")
    os.rename(tmp_path / "y", tmp_path / "x")
    assert is_current(tmp_path / "x", "f2")  # and one after both renames keeps the new one
    assert not (tmp_path / ".x.old").exists()


@pytest.mark.parametrize("place", ["sync_file", "sync_folder"])
def test_a_full_disk_is_told_and_leaves_the_old_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    write(tmp_path / "x")

    def full(_: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(artifact, place, full)
        with pytest.raises(DiskFullError, match="disk is full") as caught:
            write(tmp_path / "x", "new", "f2")
    assert caught.value.exit_code == 1
    assert is_current(tmp_path / "x", "f1")


def test_an_artifact_is_taken_over_only_if_whole_and_of_the_same_making(tmp_path: Path) -> None:
    write(tmp_path / "one")
    write(tmp_path / "damaged")
    (tmp_path / "damaged" / "a.txt").write_text("other")
    write(tmp_path / "stale", fingerprint="f0")
    candidates = [tmp_path / name for name in ("damaged", "stale", "missing")]
    assert not adopt(tmp_path / "two", candidates, "f1")
    assert not (tmp_path / "two").exists()
    assert adopt(tmp_path / "two", [*candidates, tmp_path / "one"], "f1")
    assert is_current(tmp_path / "two", "f1")
    assert (tmp_path / "two" / "sub" / "b.bin").read_bytes() == bytes(range(256))


def test_outputs_that_would_destroy_something_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "test")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for good in ("empty", "new", "test", "new/deeper"):
        require_output(Path(good), kind="test")
    for bad, message in {
        "full": "holds something other than earlier test",
        "file": "is not a folder",
        ".": "cannot be replaced",
    }.items():
        with pytest.raises(BadInputError, match=message):
            require_output(Path(bad), kind="test")
    with pytest.raises(BadInputError, match="other than earlier model"):
        require_output(Path("test"), kind="model")
    for holder in ("test", "."):
        with pytest.raises(BadInputError, match="holds the input"):
            require_output(Path(holder), kind="test", inputs=[tmp_path / "test" / "."])


@pytest.mark.parametrize("mine", ["notes.md", "sub/notes.md", "gguf", "link"])
def test_what_no_writer_wrote_is_never_removed(tmp_path: Path, mine: str) -> None:
    write(tmp_path / "x")
    if mine == "gguf":
        write(tmp_path / "x" / mine, "inside")
    elif mine == "link":
        (tmp_path / "x" / mine).symlink_to(tmp_path)
    else:
        (tmp_path / "x" / mine).write_text("mine")
    assert is_current(tmp_path / "x", "f1")
    with pytest.raises(BadInputError, match=rf"x: would lose {mine}.*; move it"):
        require_output(tmp_path / "x", kind="test")
    assert adopt(tmp_path / "y", [tmp_path / "x"], "f1")
    assert (tmp_path / "y" / mine).exists() == (mine == "gguf")
    write(tmp_path / "x", "new", "f2")
    assert [path.name for path in (tmp_path / "x").iterdir() if path.name == mine] == []
    assert (tmp_path / "x.replaced" / mine).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.replaced", "y"]


@pytest.mark.parametrize("name", [".x.writing", ".x.old"])
def test_a_folder_of_ours_is_known_by_more_than_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    require_output(tmp_path / "x", kind="test")
    (tmp_path / name / "mine").write_text("")
    with pytest.raises(BadInputError, match=r"is in the way of .*; move it elsewhere"):
        require_output(tmp_path / "x", kind="test")
    assert not is_current(tmp_path / "x", "f1")
    write(tmp_path / "x")
    assert (tmp_path / "x.replaced" / "mine").exists()
    (tmp_path / name).symlink_to(tmp_path / "x")
    write(tmp_path / "x", fingerprint="f2")
    assert (tmp_path / "x.replaced-2").is_symlink()
    (tmp_path / ".x.writing").mkdir()
    (tmp_path / ".x.writing" / ".writing").touch()  # what a kill leaves
    (tmp_path / ".x.writing" / "half").touch()
    write(tmp_path / "x", fingerprint="f3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.replaced", "x.replaced-2"]


def test_an_artifact_inside_an_artifact_answers_for_itself(tmp_path: Path) -> None:
    write(tmp_path / "x")
    write(tmp_path / "x" / "inner", "inside")
    (tmp_path / "x" / ".inner.writing").mkdir()
    (tmp_path / "x" / ".inner.writing" / "half").write_text("what a kill left")
    assert set(verify(tmp_path / "x").files) == {"a.txt", "sub/b.bin"}
    (tmp_path / "x" / "inner" / "a.txt").write_text("damaged")
    assert is_current(tmp_path / "x", "f1")
    assert not is_current(tmp_path / "x" / "inner", "f1")
    (tmp_path / "x" / "inner" / MANIFEST).unlink()
    with pytest.raises(ArtifactError, match=r"inner/a\.txt was not written with the rest"):
        verify(tmp_path / "x")


def test_a_revised_file_makes_no_other_artifact(tmp_path: Path) -> None:
    write(tmp_path / "x")
    before = read_manifest(tmp_path / "x")
    for text in ("second", "third"):
        revise(tmp_path / "x", "a.txt", text)
        assert verify(tmp_path / "x").files == before.files
        assert is_current(tmp_path / "x", "f1")
        assert (tmp_path / "x" / "a.txt").read_text() == text
    assert adopt(tmp_path / "y", [tmp_path / "x"], "f1")
    assert verify(tmp_path / "y").files == before.files
    assert (tmp_path / "y" / "a.txt").read_text() == "third"
    (tmp_path / "x" / "a.txt").write_text("fourth")
    with pytest.raises(ArtifactError, match=r"a\.txt has changed"):
        verify(tmp_path / "x")
    with pytest.raises(ArtifactError, match=r"none\.txt is missing"):
        revise(tmp_path / "x", "none.txt", "")


@pytest.mark.parametrize("cut", ["manifest.json", "a.txt"])
def test_a_revision_cut_anywhere_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    write(tmp_path / "x")
    revise(tmp_path / "x", "a.txt", "second")

    def die_at(path: Path, text: str) -> None:
        if path.name == cut:
            raise KeyboardInterrupt
        write_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write_text", die_at)
        with pytest.raises(KeyboardInterrupt):
            revise(tmp_path / "x", "a.txt", "third")
    assert is_current(tmp_path / "x", "f1")
    assert (tmp_path / "x" / "a.txt").read_text() == "second"


def test_an_adopted_artifact_brings_what_lies_inside(tmp_path: Path) -> None:
    write(tmp_path / "x")
    write(tmp_path / "x" / "inner", "inside", "f2")
    assert adopt(tmp_path / "y", [tmp_path / "x"], "f1")
    assert is_current(tmp_path / "y" / "inner", "f2")

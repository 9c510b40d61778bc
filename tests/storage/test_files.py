from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from aegis.errors import DiskFullError
from aegis.storage import files


def test_a_full_disk_without_errno_is_recognised() -> None:
    with pytest.raises(DiskFullError), files.disk_full_explained(Path("x")):
        raise RuntimeError("PytorchStreamWriter failed: No space left on device")


def test_space_is_checked_before_writing(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="MiB are needed"):
        files.require_space(tmp_path / "not" / "there", 1 << 60)
    files.require_space(tmp_path, 1)


def test_text_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.json"
    files.write_json(path, {"a": "あ"})
    assert path.read_text(encoding="utf-8") == '{\n  "a": "あ"\n}\n'
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(path, float("nan"))
    assert "あ" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["t.json"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_private_file_is_private_from_the_first_instant(tmp_path: Path) -> None:
    path = tmp_path / "key"
    for content in (b"old", b"new"):
        files.write_bytes(path, content, 0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_written_at_their_place(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    with files.descriptor_of(path, os.O_RDWR) as descriptor:
        files.write_at(descriptor, b"abc", 3)
        files.sync_data(descriptor)
    assert path.read_bytes() == b"012abc6789"

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from aegis.errors import DataError
from aegis.inputs.text import read_lines, read_text

TEXT = "もでる\n二\n"


def text_of(path: Path, most: int = 100) -> str:
    return read_text(path, most=most, kind="test", error=DataError)


def lines_of(path: Path, most: int = 100) -> list[tuple[str, str | None]]:
    return list(read_lines(path, most=most, kind="test", error=DataError, name="x"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_read_as_its_mark_says(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x"
    path.write_text(TEXT, encoding=encoding)
    assert text_of(path) == TEXT
    assert lines_of(path) == [("x:1", "もでる\n"), ("x:2", "二\n")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (TEXT.encode("cp932"), "Shift_JIS, not UTF-8"),
        (TEXT.encode("euc_jp"), "EUC-JP, not UTF-8"),
        ("a: も".encode("utf-16-le"), "UTF-16"),
        ("a: も".encode("utf-16-be"), "UTF-16"),
        (b"caf\xe9", "not UTF-8 at byte 3"),
        ("é".encode() + b"\xff", "not UTF-8 at byte 2"),
        (b"\xed\xa0\x80", "not UTF-8 at byte 0"),
        (b"\xff\xfe\x00\xd8", "damaged utf-16"),
    ],
)
def test_other_encodings_are_told_with_the_remedy(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    for read in (text_of, lines_of):
        with pytest.raises(DataError, match=f"{message}.*save the file as UTF-8"):
            read(path)


def test_what_is_longer_than_allowed_is_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("a\n" + "b" * 1000 + "\nc\n" + "d" * 1000)
    assert lines_of(path, 5) == [("x:1", "a\n"), ("x:2", None), ("x:3", "c\n"), ("x:4", None)]
    with pytest.raises(DataError, match="longer than 5 characters"):
        text_of(path, 5)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_what_may_have_no_end_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for path, message in {
        "pipe": "is a pipe or device; give an existing test file",
        "/dev/zero": "is a pipe or device",
        "/dev/null": "is a pipe or device",
        ".": "cannot be read .Is a directory",
        "loop": "cannot be read",
        "none": "cannot be read .No such file",
        "x\0y": "cannot be read",
    }.items():
        for read in (text_of, lines_of):
            with pytest.raises(DataError, match=message):
                read(tmp_path / path)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="shells' pipes as Linux names them")
def test_a_pipe_that_a_shell_made_is_read() -> None:
    reader, writer = os.pipe()
    threading.Thread(target=lambda: (os.write(writer, TEXT.encode()), os.close(writer))).start()
    try:
        assert text_of(Path(f"/dev/fd/{reader}")) == TEXT
    finally:
        os.close(reader)

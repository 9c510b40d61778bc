from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from aegis.cli.output import require_output_file, require_place
from aegis.errors import BadInputError
from aegis.storage.files import open_output, write_output


def test_a_result_goes_where_it_is_wanted(tmp_path: Path) -> None:
    for path in (tmp_path / "new.txt", tmp_path / "deep" / "er" / "new.txt"):
        require_output_file(path)
        write_output(path, "あ")
        write_output(path, "い")
        assert path.read_text(encoding="utf-8") == "い"
        assert [other.name for other in path.parent.iterdir() if other.is_file()] == ["new.txt"]
    before = (tmp_path / "new.txt").read_bytes()
    with contextlib.suppress(KeyboardInterrupt), open_output(tmp_path / "new.txt") as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert (tmp_path / "new.txt").read_bytes() == before
    assert (tmp_path / "new.txt.partial").read_bytes() == b"half"
    with pytest.raises(BadInputError, match="would overwrite the input"):
        require_output_file(tmp_path / "new.txt", inputs=[tmp_path / "new.txt.partial"])


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, target = tmp_path / "link", tmp_path / "kept" / "file"
    link.symlink_to(target)
    for text in ("first", "second"):  # at first the link leads nowhere
        require_output_file(link)
        write_output(link, text)
        assert link.is_symlink()
        assert target.read_text() == text


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
def test_pipes_and_devices_are_written_through(tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    paths = [pipe]
    with contextlib.suppress(OSError):  # a /dev/null of our own, which only root can make
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        paths.append(tmp_path / "null")
    kinds = [path.stat().st_mode for path in paths]
    for path in paths:
        require_output_file(path)
        write_output(path, "through")
    assert [path.stat().st_mode for path in paths] == kinds
    reader.join(5)
    assert read == ["through"]
    (tmp_path / "log").write_text("earlier ")
    write = "from aegis.storage.files import *; write_output(Path('/dev/stdout'), 'later')"
    with (tmp_path / "log").open("a") as log:
        subprocess.run([sys.executable, "-c", write], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "earlier later"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="memory as a folder is Linux's")
def test_a_file_below_dev_is_a_file() -> None:
    path = Path("/dev/shm") / f"aegis-{os.getpid()}.txt"
    try:
        for text in ("first", "second"):
            write_output(path, text)
            assert path.read_text() == text
    finally:
        path.unlink()


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
def test_what_stands_in_the_place_of_a_partial_result_is_told_and_kept(tmp_path: Path) -> None:
    path, partial, other = tmp_path / "new", tmp_path / "new.partial", tmp_path / "other"
    other.write_text("kept")
    for make in (lambda: partial.symlink_to(other), lambda: os.mkfifo(partial), partial.mkdir):
        make()
        with pytest.raises(BadInputError, match=r"new\.partial: is no file .*; move it elsewhere"):
            require_output_file(path)
        with pytest.raises(OSError, match=r"new\.partial"):
            write_output(path, "new")
        assert other.read_text() == "kept"
        partial.rename(tmp_path / f"kept-{len(list(tmp_path.iterdir()))}")


def test_what_cannot_or_must_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "again").symlink_to("file")
    cannot = ("loop", "loop/x", "file/x", "x" * 250, "/proc/x", "/proc/x/y", "/sys/x/y")
    for name in cannot:
        for check in (require_output_file, require_place):
            with pytest.raises(BadInputError, match=r"cannot be written \(.+\); give a path"):
                check(tmp_path / name)
    with pytest.raises(BadInputError, match="is a folder; give a file"):
        require_output_file(tmp_path)
    for name, source in (("file", "file"), ("again", "file"), ("file", "."), ("new", ".")):
        with pytest.raises(BadInputError, match="would overwrite the input"):
            require_output_file(tmp_path / name, inputs=[tmp_path / source])
    require_output_file(tmp_path / "file", inputs=[tmp_path / "other"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "file", "loop", "lost"]


def test_a_whole_disk_is_no_place() -> None:
    with pytest.raises(BadInputError, match="is a whole disk; give a path below it"):
        require_place(Path("/"))

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from aegis.audit import AuditKeys, keystore
from aegis.audit.reader import segments
from tests.audit.logs import write


@pytest.fixture(scope="module", autouse=True)
def small_blocks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keystore, "SALT_BLOCK", 8)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of nine records in several files, with a change of keys, closed in good
    order; and its keys."""
    folder = tmp_path_factory.mktemp("made")
    keys = AuditKeys.create(folder / "keys")
    write(folder / "log", keys, 5, segment_bytes=4000, sign_every_s=0)
    write(folder / "log", keys.rotated(), 4, segment_bytes=4000, first=6)
    assert len(segments(folder / "log")) >= 3
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"

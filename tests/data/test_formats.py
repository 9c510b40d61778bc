from __future__ import annotations

from pathlib import Path

import pytest

from aegis.data.formats import read_items
from aegis.errors import DataError


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of records.jsonl"):
        list(read_items([tmp_path]))

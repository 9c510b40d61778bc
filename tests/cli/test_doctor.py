from __future__ import annotations

import importlib.util
import shutil

import pytest

from aegis.cli.doctor import _version, examine


def test_doctor_tells_what_is_there() -> None:
    found = examine()
    assert set(found) == {"machine", "packages", "extras", "models", "tools"}
    assert found["machine"]["memory_gib"] > 0
    assert found["packages"]["torch"].startswith("2.")
    assert _version("no-such-package-at-all") == "missing: pip install no-such-package-at-all"


def test_what_quantises_and_serves_gguf_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    find = importlib.util.find_spec
    for there in (True, False):
        spec = object() if there else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, s=spec: s if name == "cyllama" else find(name)
        )
        tools = examine()["tools"]
        for row in ("K-quants", "GGUF serving"):
            assert tools[row].startswith("cyllama " if there else "missing: pip install")

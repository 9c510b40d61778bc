from __future__ import annotations

from aegis.cli.doctor import _version, examine


def test_doctor_tells_what_is_there() -> None:
    found = examine()
    assert set(found) == {"machine", "packages", "extras", "models", "tools"}
    assert found["machine"]["memory_gib"] > 0
    assert found["packages"]["torch"].startswith("2.")
    assert _version("no-such-package-at-all") == "missing: pip install no-such-package-at-all"

from __future__ import annotations

import json
import os
from pathlib import Path

from aegis.serve.tokens import read_tokens
from tests.cli.test_serve import called


def test_tokens_are_made_shown_once_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    made = called(
        "token",
        "new",
        "mai",
        "--scope",
        "ask",
        "--scope",
        "review",
        "--tokens",
        str(file),
        "--json",
    )
    token = json.loads(made.stdout)["token"]
    assert oct(file.stat().st_mode & 0o777) == "0o600" or os.name == "nt"
    listed = called("token", "list", "--tokens", str(file)).stdout
    assert "mai" in listed
    assert token not in listed + file.read_text(encoding="utf-8")
    assert "taken" in str(called("token", "new", "mai", "--tokens", str(file)).exception)
    assert "scope must be" in str(
        called("token", "new", "kei", "--scope", "all", "--tokens", str(file)).exception
    )
    assert called("token", "revoke", "mai", "--tokens", str(file)).exit_code == 0
    assert read_tokens(file)[0].revoked
    assert "no valid token" in str(
        called("token", "revoke", "mai", "--tokens", str(file)).exception
    )

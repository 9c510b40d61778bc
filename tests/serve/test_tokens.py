from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.errors import BadInputError
from aegis.serve.tokens import TokenFile, new_token, read_tokens, revoke


def test_a_token_is_found_until_it_is_revoked(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    first, second = (new_token(path, name, ["review", "ask"]) for name in ("mai", "kei"))
    tokens = TokenFile(path)
    for secret, name in ((first, "mai"), (second, "kei")):
        found = tokens.find(secret)
        assert found
        assert (found.name, found.scopes) == (name, ("ask", "review"))
    assert tokens.find(first[:-1] + ("A" if first[-1] != "A" else "B")) is None
    assert tokens.find("") is None
    revoke(path, "mai")
    assert tokens.find(first) is None
    assert tokens.find(second)
    assert first not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["", "a b", "x" * 65])
def test_an_impossible_name_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInputError, match="token name must be"):
        new_token(tmp_path / "tokens.json", name, ["ask"])


ROW = {"id": "x", "name": "x", "scopes": ["ask"], "sha256": "x", "created": "x", "revoked": None}
WRONG = [
    *({name: 7} for name in ROW if name != "scopes"),
    {"sha256": ["x"]},
    {"revoked": {}},
    {"scopes": 7},
]


@pytest.mark.parametrize(
    "text",
    [
        *("no", "[]", "7", json.dumps({"tokens": [{"id": "x"}]}), json.dumps({"tokens": 7})),
        *(json.dumps({"tokens": [ROW | wrong]}) for wrong in WRONG),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "tokens.json").write_text(text, encoding="utf-8")
    with pytest.raises(BadInputError, match="is no token file"):
        read_tokens(tmp_path / "tokens.json")

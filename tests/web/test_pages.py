from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from starlette.requests import Request

from aegis.web.pages import HERE, age, language_of

_WORDS = re.compile(r'\bt\(\s*"([^"]+)"')


@pytest.mark.parametrize(
    ("accept", "cookie", "language"),
    [
        ("ja,en;q=0.5", "", "ja"),
        ("ja-JP", "", "ja"),
        ("en-GB,ja", "", "en"),
        ("fr,ja;q=0.4", "", "ja"),
        ("", "", "en"),
        ("zz", "", "en"),
        ("en", "aegis_language=ja", "ja"),
        ("ja", "aegis_language=<x>", "ja"),
    ],
)
def test_the_chosen_language_goes_before_the_browsers(
    accept: str, cookie: str, language: str
) -> None:
    headers = [(b"accept-language", accept.encode()), (b"cookie", cookie.encode())]
    assert language_of(Request({"type": "http", "headers": headers})) == language


def test_every_phrase_has_its_japanese_with_the_same_places() -> None:
    japanese = json.loads((HERE / "ja.json").read_text(encoding="utf-8"))
    pages = [path.read_text(encoding="utf-8") for path in (HERE / "templates").glob("*.j2")]
    used = {phrase for text in pages for phrase in _WORDS.findall(text)}
    assert len(used) > 20
    assert used <= japanese.keys()
    for english, translated in japanese.items():
        assert sorted(re.findall(r"{\w+}", english)) == sorted(re.findall(r"{\w+}", translated))


def test_pages_hold_no_script_style_or_address_of_their_own() -> None:
    for path in (HERE / "templates").glob("*.j2"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<style|style=|\son\w+=|<script(?! src=\"/ui/static/)", text), path
    for path in [*(HERE / "templates").iterdir(), *(HERE / "static").glob("*.[cj]s")]:
        assert not re.search(r"https?://|url\(|@import", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=5), "5 s"),
        (timedelta(minutes=3), "3 min"),
        (timedelta(hours=30), "1 d"),
        (timedelta(days=-1), "0 s"),
    ],
)
def test_ages_are_rough(ago: timedelta, text: str) -> None:
    assert age((datetime.now(UTC) - ago).isoformat()) == text


def test_what_is_no_time_has_no_age() -> None:
    assert age("") == age("<script>") == ""

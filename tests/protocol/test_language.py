from __future__ import annotations

from aegis.protocol.language import detect_language


def test_languages_are_told_apart() -> None:
    assert [detect_language(text) for text in ("hello", "こんにちは", "漢字", "Pythonで")] == [
        "en",
        "ja",
        "ja",
        "ja",
    ]

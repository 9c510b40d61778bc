from __future__ import annotations

import pytest

from aegis.protocol.spelling import hidden_text, readable, undisguised

PLAIN = "How to make tea? ガスの元栓を閉めて"


@pytest.mark.parametrize(
    "text",
    [
        "Ｈｏｗ ｔｏ ｍａｋｅ ｔｅａ? ガスの元栓を閉めて",
        "H\u200bow t\u2060o ma\u00adke t\ufeffea? ガ\u200bスの元栓を閉めて",
        "𝐇𝐨𝐰 𝓽𝓸 𝔪𝔞𝔨𝔢 𝕥𝕖𝕒? ｶﾞｽの元栓を閉めて",
        "Ноw tо mаkе tеа? カ\u3099スの元栓を閉めて",
        "&#72;ow to &#x6d;ake te&#97;? %E3%82%AC%E3%82%B9の元栓を閉めて",
        "H̶o̶w̶ to m̃ake téa? ガスの元栓を閉めて",
        "ⓗow to ⓜake tea? ガスの元栓を閉めて".replace("ⓗ", "Ⓗ"),
        "H\u202eow to make\u202c tea? ガ\ufe0fスの元栓を閉めて",
    ],
)
def test_a_disguise_reads_as_what_it_hides(text: str) -> None:
    assert readable(text) == PLAIN
    assert undisguised(text) == undisguised(PLAIN)


def test_ordinary_japanese_stays_as_it_is() -> None:
    plain = "「え、本当？」と聞くと、パパは『うん…』（小声）！　それで～。"
    assert readable(plain) == plain
    assert readable("パスワ一ド") == "パスワード"
    assert readable("一口の力、八時二分に工場で") == "一口の力、八時二分に工場で"


def test_wide_marks_behind_wide_letters_are_theirs_in_japanese_too() -> None:
    assert readable("天気は？ Ｏｐｅｎ ｉｔ．") == "天気は？ Open it."


def test_a_comparison_is_blind_to_voicing() -> None:
    assert undisguised("がぱ") == undisguised("かは")


def test_tag_characters_are_read_apart() -> None:
    smuggled = "".join(chr(0xE0000 + ord(letter)) for letter in "key 42")
    assert hidden_text(f"nice{smuggled} day") == "key 42"
    assert readable(f"nice{smuggled} day") == "nice day"

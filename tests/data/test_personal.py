from __future__ import annotations

from aegis.data.personal import mask_everywhere, mask_personal_data


def test_personal_data_is_masked() -> None:
    for text in (
        "Write to John.Doe@Example.com",
        "連絡先は taro＠example.jp です",
        "090-1234-5678",
        "call (03) 1234-5678",
    ):
        masked, found = mask_personal_data(text)
        assert found == 1, text
        assert "[" in masked
    for text in ("2024-05-01", "12,345円", "x @ y", "1234567", "東京都", "5-4-3-2-1", "3.14159"):
        assert mask_personal_data(text) == (text, 0)
    nested = {
        "id": "a@b.org",
        "prompt": "Mine is a.b@c.org",
        "thinking": {"task": ["call 090-1234-5678"]},
        "n": 3,
    }
    masked, found = mask_everywhere(nested)
    assert found == 2
    assert masked == {
        "id": "a@b.org",
        "prompt": "Mine is [EMAIL]",
        "thinking": {"task": ["call [PHONE]"]},
        "n": 3,
    }

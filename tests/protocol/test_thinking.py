from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.errors import DataError
from aegis.protocol.thinking import (
    SECTIONS,
    PrivateText,
    Thinking,
    compose,
    looks_like_a_tag,
    parse,
)

BODIES = {
    "task": "a question",
    "safety": "nobody is harmed",
    "policy": "ALLOW",
    "final": "answer briefly",
}
plain = st.text(min_size=1).filter(lambda t: t.strip() and not looks_like_a_tag(t)).map(str.strip)


@given(st.fixed_dictionaries(dict.fromkeys(SECTIONS, plain)), plain)
def test_parse_is_the_inverse_of_compose(bodies: dict[str, str], public: str) -> None:
    thinking = Thinking.from_bodies(bodies, public, where="here")
    assert parse(compose(thinking)) == thinking
    assert Thinking.from_bodies(thinking.to_record()["thinking"], public, where="here") == thinking  # pyright: ignore


@given(st.data())
def test_every_cut_of_a_response_is_rejected(data: st.DataObject) -> None:
    whole = compose(Thinking.from_bodies(BODIES, "Certainly.", where="here"))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DataError, match="thinking protocol") as caught:
        parse(whole[:cut])
    assert "harmed" not in str(caught.value)


def test_private_text_does_not_show_itself() -> None:
    secret = PrivateText("the plan")
    thinking = Thinking.from_bodies(BODIES, "Hello", where="here")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>40}", repr(thinking)):
        assert "plan" not in shown.replace("plan=", "")
        assert "nobody" not in shown
    assert secret.reveal() == "the plan"


@pytest.mark.parametrize(
    "text",
    [
        "<think-task>",
        "</FINAL>",
        "＜think-safety＞",
        "<\u200bfinal>",
        "&lt;final&gt;",
        "< / think-policy >",
        "<fi\u200bnal>",
    ],
)
def test_tag_like_text_is_seen(text: str) -> None:
    assert looks_like_a_tag(f"before {text} after")
    with pytest.raises(DataError, match="tag-like"):
        Thinking.from_bodies({**BODIES, "task": text}, "Hello", where="here")


@pytest.mark.parametrize("change", [{"task": ""}, {"task": None}, {"task": 3}, {"extra": "x"}])
def test_bad_bodies_are_told(change: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"here: thinking\."):
        Thinking.from_bodies({**BODIES, **change}, "Hello", where="here")

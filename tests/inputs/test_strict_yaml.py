"""What a config's user meets is in tests/config/test_loading.py."""

from __future__ import annotations

import time

import pytest
import yaml

from aegis.errors import ConfigError
from aegis.inputs.strict_yaml import Dumper, read_yaml


def test_what_aliases_share_is_not_shared_afterwards() -> None:
    value = read_yaml(
        "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\nd: {e: &d {<<: *a, x: 3}}\nf: *d", "x"
    )
    assert value == {
        "a": {"x": 1},
        "b": {"x": 1},
        "c": {"x": 1, "y": 2},
        "d": {"e": {"x": 3}},
        "f": {"x": 3},
    }
    value["a"]["x"] = 5
    assert value["b"]["x"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(["a0: &a0 [x]"] + [f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 30)]),
        "a0: &a0 {x: 1}\n"
        + "\n".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60)),
        "a: &a {b: *a}",
        "[" * 100_000,
        "{a: " * 20_000,
        "- " * 50_000,
        "[" + "1," * 21_000 + "]",
        "*a" * 50_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "x")
    assert time.process_time() - begun < 20
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["010", "1:30", "2026-01-01", "1e5", "08", "x\u3000", "\tx", "9" * 50]
)
def test_text_is_written_so_that_it_stays_text(text: str) -> None:
    assert read_yaml(yaml.dump([text], Dumper=Dumper, allow_unicode=True), "x") == [text]

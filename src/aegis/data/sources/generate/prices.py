"""What tokens cost, by model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from aegis.data.sources.generate.backend import CallUsage
from aegis.errors import ConfigError
from aegis.inputs.strict_yaml import MOST_CHARACTERS, read_yaml
from aegis.inputs.text import read_text


@dataclass(frozen=True)
class Price:
    """US dollars a million tokens."""

    input: float
    output: float

    def cost(self, usage: CallUsage) -> float:
        tokens = (usage.input_tokens or 0, usage.output_tokens or 0)
        return (tokens[0] * self.input + tokens[1] * self.output) / 1e6


def load_prices(own: Path | None = None) -> dict[str, Price]:
    """Return prices by the beginnings of models' names: the user's, then those shipped, of each the
    longest names first.

    Raises:
        ConfigError: if the user's file is no table of prices.
    """
    shipped = (
        files("aegis.data.sources.generate").joinpath("prices.yaml").read_text(encoding="utf-8")
    )
    table = _read(shipped, "prices.yaml")
    if own is None:
        return table
    text = read_text(own, most=MOST_CHARACTERS, kind="YAML", error=ConfigError)
    rows = _read(text, str(own))
    return rows | {name: price for name, price in table.items() if name not in rows}


def find_price(prices: Mapping[str, Price], model: str | None) -> Price | None:
    """Return the price of the first name that the model's own begins with, as whole words: what
    `gpt-5` costs says nothing about `gpt-5.9`."""
    whole = model or ""
    for name, price in prices.items():
        for given in (whole, whole.rpartition("/")[2]):
            if given.startswith(name) and not re.match(r"[0-9A-Za-z.]", given[len(name) :]):
                return price
    return None


def _read(text: str, where: str) -> dict[str, Price]:
    rows = read_yaml(text, where)
    if not isinstance(rows, dict):
        raise ConfigError(f"{where}: must be rows of MODEL: {{input: USD, output: USD}}")
    named = sorted(((str(name), row) for name, row in rows.items()), key=lambda one: -len(one[0]))
    return {name: _price(row, f"{where}: {name}") for name, row in named}


def _price(row: Any, where: str) -> Price:
    if not isinstance(row, dict) or row.keys() != {"input", "output"}:
        raise ConfigError(f"{where} must be {{input: USD, output: USD}} a million tokens")
    for name, value in row.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            raise ConfigError(f"{where}.{name} must be a number of dollars >= 0, got {value!r}")
    return Price(**row)

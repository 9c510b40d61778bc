"""What every group of settings shares: frozen, strict, no unknown keys, and the bounded numbers."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
HalfShare = Annotated[float, Field(gt=0, le=0.5)]
Points = Annotated[float, Field(gt=0, le=100)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Epochs = Annotated[float, Field(gt=0, le=10_000)]
Count = Annotated[int, Field(ge=0, le=10**9)]
AtLeastOne = Annotated[int, Field(ge=1, le=10**9)]
Text = Annotated[str, Field(min_length=1)]


def _ordered(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[0] > shares[1]:
        raise ValueError("the first share must not be larger than the second")
    return shares


def _expand_home(path: str) -> str:
    if any(unicodedata.category(mark) == "Cc" for mark in path):
        raise ValueError("a path must not hold control characters")
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:
        raise ValueError("no home folder is known for this ~; write the path out") from error


PathText = Annotated[Text, AfterValidator(_expand_home)]
Range = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]


class Settings(BaseModel):
    """A group of settings. The docstring below a setting becomes its `Field(description=)`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, raw: Any) -> Any:
        return {} if raw is None else raw

"""What every group of settings shares: frozen, strict, no unknown keys, and the bounded numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


def _ordered(shares: tuple[float, float]) -> tuple[float, float]:
    if shares[0] > shares[1]:
        raise ValueError("the first share must not be larger than the second")
    return shares


Range = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]


class Settings(BaseModel):
    """A group of settings. The docstring below a setting becomes its `Field(description=)`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

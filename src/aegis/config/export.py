"""`export`: the folded model and the limits that its certificate must keep."""

from __future__ import annotations

from typing import Literal

from aegis.config.settings import Positive, Settings, Share


class ExportSettings(Settings):
    """Stage 4: the folded model and the limits that its certificate must keep."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the folded weights; 16 bits halve the file and round."""
    max_logit_difference: Positive | None = None
    """How far a logit may move by folding; higher allows more rounding, null sets no limit."""
    min_top1_agreement: Share = 0.99
    """Share of positions whose likeliest token must stay; higher allows less rounding."""

"""`evaluate`: judging the held-out split."""

from __future__ import annotations

from typing import Literal

from aegis.config.settings import AtLeastOne, Count, HalfShare, OpenShare, Points, Settings


class EvaluateSettings(Settings):
    """Stage 4: judging the held-out split."""

    batch_tokens: AtLeastOne = 2048
    """Tokens judged at once, padding included; higher is faster and takes more memory."""
    confidence: OpenShare = 0.95
    """Level of the intervals and of the bound on the miss rate; higher widens them, and the bound
    takes more validation records or a higher τ."""
    max_miss_rate: HalfShare | None = 0.1
    """Largest share of unsafe prompts (DENY, REFUSE) that may be allowed: the threshold on ALLOW is
    chosen on validation so that this holds with `confidence`, and what falls below it goes to a
    person. Lower lets less through and hands more harmless prompts to a person; null sets no
    threshold."""
    questions: Count = 40
    """Plain questions that base and candidate answer side by side in the report; 0 asks none, more
    takes longer and narrows the intervals."""
    question_language: Literal["en", "ja", "all"] = "en"
    """Language of these questions; `all` takes both, for a base that reads Japanese."""
    benchmark_items: Count = 80
    """Shipped items with choices that base and candidate are asked of each plain task (facts,
    sense, grammar, Japanese); more narrow the intervals, 0 asks none."""
    probe_records: Count = 1000
    """Training prompts that a linear probe on the frozen base learns from, to stand beside the
    candidate; more make it a stronger peer and take longer, 0 leaves it out."""
    margin: Points = 5.0
    """Points; where the report compares base and candidate, a smaller loss counts as none. Lower
    needs more items before anything is said to have held."""

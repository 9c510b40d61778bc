"""`evaluate`: judging the held-out split."""

from __future__ import annotations

from aegis.config.settings import AtLeastOne, OpenShare, Settings


class EvaluateSettings(Settings):
    """Stage 4: judging the held-out split."""

    batch_tokens: AtLeastOne = 2048
    """Tokens judged at once, padding included; higher is faster and takes more memory."""
    confidence: OpenShare = 0.95
    """Level of the intervals; higher widens them."""

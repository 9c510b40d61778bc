"""`durable`: how often a run saves itself, and when it warns."""

from __future__ import annotations

from aegis.config.settings import AtLeastOne, Positive, Settings


class DurableSettings(Settings):
    """How often a run saves itself and when it warns. Changing these never starts a run anew."""

    interval_s: Positive = 180.0
    """Seconds of work that a power cut can cost at most; higher saves less often."""
    keep_training: AtLeastOne = 5
    """Snapshots of a training that stay; more take more disk."""
    silence_s: Positive = 300.0
    """Seconds without a sign of life after which a run counts as hung; higher waits longer."""
    gpu_temperature_c: Positive = 75.0
    """Degrees Celsius of a GPU above which a run warns."""
    memory_percent: Positive = 95.0
    """Percent of main memory in use above which a run warns."""
    cpu_percent: Positive = 90.0
    """Percent of the CPU in use above which a run warns, if more than 10 are other programs'."""

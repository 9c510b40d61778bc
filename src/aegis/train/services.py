"""What a training needs around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis.runs.events import Reporter
from aegis.storage.journal import Remember, compute_anew
from aegis.train.snapshot_policy import SnapshotPolicy


@dataclass(frozen=True)
class TrainServices:
    """Where a training reports and saves itself.

    Args:
        reporter: gets `TrainingBegun`, `Metrics` and messages.
        snapshots: where to take up an unfinished training, when to save, and whether to stop; None
            for neither.
        remember: gives what was worked out before the first step, at an earlier try.
    """

    reporter: Reporter = field(default_factory=Reporter)
    snapshots: SnapshotPolicy | None = None
    remember: Remember = compute_anew


@dataclass(frozen=True)
class LoopSettings:
    """What every training is given besides its own settings.

    Args:
        pad_id: token id that fills up the shorter rows of a batch.
        clip_norm: the most that the gradient's norm may be.
    """

    pad_id: int
    seed: int
    clip_norm: float = 1.0

"""The whole of a run's settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from aegis.config.data import DataSettings
from aegis.config.durable import DurableSettings
from aegis.config.evaluate import EvaluateSettings
from aegis.config.export import ExportSettings
from aegis.config.model import ModelSettings
from aegis.config.settings import PathText, Settings
from aegis.config.train import TrainSettings


class Config(Settings):
    """The whole of a run."""

    base: PathText = "embedded"
    """What is taught: a Hugging Face folder, a hub id, a GGUF file, or embedded (AEGIS's own)."""
    runs: PathText = "runs"
    """Folder that the run's own folder is made in."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of every random choice; the same seed on the same CPU gives the same bits."""
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """CPU threads for torch; 0 for all cores."""
    tracking: Annotated[tuple[Literal["tensorboard", "mlflow"], ...], Field(strict=False)] = (
        "tensorboard",
    )
    """Where curves go besides TensorBoard's files, which are always written."""
    durable: DurableSettings = DurableSettings()
    """How often the run saves itself and when it warns."""
    data: DataSettings = DataSettings()
    """Where records come from and how they are cleaned."""
    model: ModelSettings = ModelSettings()
    """How the base is loaded and what is attached to it."""
    train: TrainSettings = TrainSettings()
    """Stage 3."""
    export: ExportSettings = ExportSettings()
    """The folded model and the limits that its certificate must keep."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Judging the held-out split."""

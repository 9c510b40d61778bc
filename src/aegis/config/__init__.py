"""Every setting, typed, frozen and described: YAML plus `--set a.b=c`."""

from aegis.config.algorithms import (
    DpoSettings,
    GroupSettings,
    PpoSettings,
    RewardSettings,
    RewardWeights,
    RolloutSettings,
)
from aegis.config.data import DataSettings, GenerateSettings, QualitySettings, SplitSettings
from aegis.config.durable import DurableSettings
from aegis.config.evaluate import EvaluateSettings
from aegis.config.export import ExportSettings
from aegis.config.loading import dump_yaml, load_config, parse_config
from aegis.config.model import GateSettings, LoraSettings, ModelSettings
from aegis.config.root import Config
from aegis.config.settings import Settings
from aegis.config.train import (
    OWN_RECORDS,
    AnnealSettings,
    DatasetSettings,
    DistillationSettings,
    LossSettings,
    TrainSettings,
)

__all__ = [
    "OWN_RECORDS", "AnnealSettings", "Config", "DataSettings", "DatasetSettings",
    "DistillationSettings", "DpoSettings", "DurableSettings", "EvaluateSettings", "ExportSettings",
    "GateSettings", "GenerateSettings", "GroupSettings", "LoraSettings", "LossSettings",
    "ModelSettings", "PpoSettings", "QualitySettings", "RewardSettings", "RewardWeights",
    "RolloutSettings", "Settings", "SplitSettings", "TrainSettings", "dump_yaml", "load_config",
    "parse_config",
]  # fmt: skip

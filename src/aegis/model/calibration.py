"""The temperature that makes a decision head's probabilities honest; it travels with the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from aegis.durable.files import to_json
from aegis.errors import ModelError

FILE = "calibration.json"


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """(n, 4) logits → (n, 4) softmax(logits / temperature)."""
    scaled = logits / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature in [0.05, 20] with the least negative log likelihood on held-out items."""

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        peak = scaled.max(axis=1)
        normaliser = peak + np.log(np.exp(scaled - peak[:, None]).sum(axis=1))
        return float((normaliser - scaled[np.arange(len(truth)), truth]).mean())

    best: Any = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def write_temperature(folder: Path, logits: np.ndarray, truth: np.ndarray) -> float:
    """Fit on (n, 4) held-out logits and write it beside the head; return it."""
    temperature = fit_temperature(logits, truth)
    (folder / FILE).write_text(to_json({"temperature": temperature, "n": len(truth)}), encoding="utf-8")
    return temperature


def read_temperature(folder: Path) -> float:
    """The fitted temperature of a model folder; 1 where none was fitted.

    Raises:
        ModelError: if calibration.json is there and unusable.
    """
    path = folder / FILE
    if not path.exists():
        return 1.0
    try:
        temperature = float(json.loads(path.read_text(encoding="utf-8"))["temperature"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a readable calibration; remove the file or fold again") from error
    if not 0 < temperature < float("inf"):
        raise ModelError(f"{path}: temperature must be > 0, got {temperature}; remove the file or fold again")
    return temperature

"""The models that a user names: what each is, and its scorer, loaded only where it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aegis.engine.scoring import Scorer
from aegis.engine.transformers_scorer import TransformersScorer
from aegis.errors import ModelError
from aegis.evaluate.results import ModelInfo
from aegis.model.adapter_folder import ADAPTER_CARD_FILE, read_card
from aegis.model.base import ModelFolder, resolve_base, weights_fingerprint
from aegis.storage.artifact import MANIFEST
from aegis.storage.files import fingerprint, hash_file

Precision = Literal["auto", "float32", "bfloat16", "float16"]
_METADATA_FILE = "metadata.json"
_PARTS_OF_A_RUN = ("model", "adapter")


@dataclass(frozen=True)
class NamedModel:
    """A model, described, and what loads it."""

    info: ModelInfo
    load: Callable[[], Scorer]


def name_model(spec: str, *, base: str | None = None, precision: Precision = "auto") -> NamedModel:
    """Return the model that `spec` names: a folder, an adapter, a run, a GGUF file, or a base.

    Args:
        base: an adapter's base, if it has moved.
        precision: of the weights; `auto` is what the model's config says.

    Raises:
        ModelError: if it is none.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        path = next((path / part for part in _PARTS_OF_A_RUN if (path / part).is_dir()), path)
        if (path / ADAPTER_CARD_FILE).is_file():
            return _adapter(path, spec, base=base, precision=precision)
        return _folder(path, spec, precision=precision)
    if path.suffix.lower() == ".gguf":
        return _gguf(path, spec)
    source = resolve_base(spec)
    dtype = _dtype(source, precision)
    content = source.fingerprint
    info = _described(Path(spec).name, spec, content, "hf", dtype, ())
    return NamedModel(info, lambda: TransformersScorer.load(source, dtype))


def _folder(folder: Path, spec: str, *, precision: Precision) -> NamedModel:
    source = ModelFolder(folder)
    dtype = _dtype(source, precision)
    content = weights_fingerprint(source)
    info = _described(_name(folder), spec, content, "hf", dtype, _made_from(folder))
    return NamedModel(info, lambda: TransformersScorer.load(source, dtype))


def _adapter(folder: Path, spec: str, *, base: str | None, precision: Precision) -> NamedModel:
    card = read_card(folder)
    source = resolve_base(base or card.base["spec"])
    dtype = _dtype(source, precision)
    content = fingerprint(card.base["fingerprint"], hash_file(folder / MANIFEST))
    origin = (str(card.base["spec"]), str(card.base["fingerprint"]))
    info = _described(_name(folder), spec, content, "adapter", dtype, origin)
    return NamedModel(info, lambda: TransformersScorer.load_adapter(folder, base, dtype))


def _gguf(file: Path, spec: str) -> NamedModel:
    raise ModelError(f"{spec}: {file.name} cannot be asked yet")


def _described(
    name: str, path: str, content: str, kind: str, dtype: torch.dtype, origin: tuple[str, ...]
) -> ModelInfo:
    precision = str(dtype).removeprefix("torch.")
    return ModelInfo(name, path, content, kind, "transformers", precision, origin)


def _dtype(source: ModelFolder, precision: Precision) -> torch.dtype:
    if precision != "auto":
        return getattr(torch, precision)
    stored = getattr(source.read_config(), "dtype", None)
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _name(folder: Path) -> str:
    """Return what tells the folder from others: with its run's name where it is a part of one."""
    folder = folder.resolve()
    part_of_run = folder.name in _PARTS_OF_A_RUN and folder.parent.name
    return f"{folder.parent.name}-{folder.name}" if part_of_run else folder.name


def _made_from(folder: Path) -> tuple[str, ...]:
    """Return what `aegis fold` noted of the base; empty where nothing is known."""
    try:
        metadata: Any = json.loads((folder / _METADATA_FILE).read_text(encoding="utf-8"))
        return (str(metadata["base"]["spec"]), str(metadata["base"]["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError):
        return ()

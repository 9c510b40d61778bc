"""The models that a user names: what each is, and its scorer, loaded only where it is asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from aegis.engine.scoring import Scorer
from aegis.engine.text_server import TextServer
from aegis.engine.transformers_scorer import TransformersScorer
from aegis.errors import ModelError
from aegis.evaluate.results import ModelInfo
from aegis.model.adapter_folder import ADAPTER_CARD_FILE, read_card
from aegis.model.base import ModelFolder, resolve_base, weights_fingerprint
from aegis.storage.artifact import MANIFEST
from aegis.storage.files import fingerprint, hash_file

A = TypeVar("A", bound=Scorer | TextServer)
Precision = Literal["auto", "float32", "bfloat16", "float16"]
_METADATA_FILE = "metadata.json"
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_FOREIGN = re.compile(r"[^\w.-]+")
_PARTS_OF_A_RUN = ("model", "adapter")


@dataclass(frozen=True)
class NamedModel(Generic[A]):
    """A model, described, and what loads it."""

    info: ModelInfo
    load: Callable[[], A]


def name_model(
    spec: str, *, base: str | None = None, precision: Precision = "auto"
) -> NamedModel[Scorer]:
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


def name_source(
    source: ModelFolder, name: str, spec: str, *, made_from: tuple[str, ...] = ()
) -> NamedModel[Scorer]:
    """Return a model that is at hand, read in float32."""
    content, dtype = weights_fingerprint(source), torch.float32
    info = _described(name, spec, content, "hf", dtype, made_from)
    return NamedModel(info, lambda: TransformersScorer.load(source, dtype))


def name_server(server: TextServer) -> NamedModel[TextServer]:
    """Return a model that a server answers for.

    Raises:
        ModelError: if it does not answer, or has no such model.
    """
    content = server.content()
    info = ModelInfo(_FOREIGN.sub("-", server.name), server.url, content, server.kind, "http")
    return NamedModel(info, lambda: server)


def _folder(folder: Path, spec: str, *, precision: Precision) -> NamedModel[Scorer]:
    source = ModelFolder(folder)
    dtype = _dtype(source, precision)
    content = weights_fingerprint(source)
    info = _described(_name(folder), spec, content, "hf", dtype, _made_from(folder))
    return NamedModel(info, lambda: TransformersScorer.load(source, dtype))


def _adapter(
    folder: Path, spec: str, *, base: str | None, precision: Precision
) -> NamedModel[Scorer]:
    card = read_card(folder)
    source = resolve_base(base or card.base["spec"])
    dtype = _dtype(source, precision)
    content = fingerprint(card.base["fingerprint"], hash_file(folder / MANIFEST))
    origin = (str(card.base["spec"]), str(card.base["fingerprint"]))
    info = _described(_name(folder), spec, content, "adapter", dtype, origin)
    return NamedModel(info, lambda: TransformersScorer.load_adapter(folder, base, dtype))


def _gguf(file: Path, spec: str) -> NamedModel[Scorer]:
    """Return a GGUF file in this process; beside it, or above its folder, may lie what it is of."""
    from aegis.engine.llamacpp_scorer import LlamaCppScorer

    if not file.is_file():
        raise ModelError(f"{spec}: no such file; give an existing GGUF file")
    content = fingerprint(*(hash_file(path) for path in _parts(file)))
    folders = [folder for folder in (file.parent, file.parent.parent) if _is_model(folder)]
    origin = [weights_fingerprint(ModelFolder(folder)) for folder in folders]
    noted = next((made for folder in (file.parent, *folders) if (made := _made_from(folder))), ())
    info = ModelInfo(file.stem, spec, content, "gguf", "llama.cpp", "", (*origin, *noted))
    return NamedModel(info, lambda: LlamaCppScorer.load(file))


def _parts(file: Path) -> list[Path]:
    """Return the file, or all files of a model in parts."""
    name = _PART.sub("-*-of-*.gguf", file.name)
    return sorted(file.parent.glob(name)) if name != file.name else [file]


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))


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

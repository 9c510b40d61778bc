"""The state of an unfinished training: captured at a step's end, restored to the last bit.

A training registers its parts by name. A snapshot holds exactly those parts, each with exactly its
tensors and values; a missing or an extra one is an error, never a silent default, so that a part
added later cannot be forgotten.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from aegis.errors import AegisError

VERSION = 3
_TENSORS, _VALUES = "state.safetensors", "state.json"
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, SafetensorError, AegisError)


@dataclass(frozen=True)
class Content:
    """One part's state: tensors by name, and JSON values.

    Tensors may be those that train: write them at once.
    """

    tensors: dict[str, Tensor]
    values: Any


class Part(Protocol):
    """Something with state."""

    def capture(self) -> Content: ...
    def restore(self, content: Content) -> None: ...


class ModuleState:
    """The trainable parameters of a module and the buffers of the named children."""

    def __init__(self, module: nn.Module, *, buffers_of: tuple[str, ...] = ()) -> None:
        self.module, self.buffers_of = module, buffers_of

    def capture(self) -> Content:
        return Content(
            {name: tensor.detach().cpu() for name, tensor in self._tensors().items()}, None
        )

    def restore(self, content: Content) -> None:
        own = self._tensors()
        _require_same("parameters", own.keys(), content.tensors.keys())
        with torch.no_grad():
            for name, tensor in own.items():
                _require_shape(name, tensor, content.tensors[name])
                tensor.copy_(content.tensors[name])

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {
            name: value for name, value in self.module.named_parameters() if value.requires_grad
        }
        for child in self.buffers_of:
            buffers = self.module.get_submodule(child).named_buffers()
            tensors |= {f"{child}.{name}": value for name, value in buffers}
        return tensors


class OptimizerState:
    """A torch optimizer: the moments of every parameter, and each group's settings.

    Single float32 numbers, the counters of steps, are written as values: a third as many tensors to
    write one by one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def capture(self) -> Content:
        raw = self.optimizer.state_dict()
        tensors: dict[str, Tensor] = {}
        numbers: dict[str, float] = {}
        for index, state in raw["state"].items():
            for key, value in state.items():
                if not isinstance(value, Tensor):
                    raise AegisError(
                        f"optimizer state {key!r} is a {type(value).__name__}; only tensors can be "
                        "saved"
                    )
                if _is_number(value):
                    numbers[f"{index}/{key}"] = value.item()
                else:
                    tensors[f"{index}/{key}"] = value.detach().cpu()
        return Content(tensors, {"groups": raw["param_groups"], "numbers": numbers})

    def restore(self, content: Content) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        numbers = {
            name: torch.tensor(value, dtype=torch.float32)
            for name, value in content.values["numbers"].items()
        }
        for name, value in {**content.tensors, **numbers}.items():
            index, _, key = name.partition("/")
            state.setdefault(int(index), {})[key] = value
        known = set().union(*state.values())
        for fields in state.values():
            _require_same("optimizer state", known, fields)
        own, saved = (
            [str(group["params"]) for group in groups]
            for groups in (self.optimizer.state_dict()["param_groups"], content.values["groups"])
        )
        _require_same("optimizer groups", own, saved)
        groups = [
            dict(group, betas=tuple(group["betas"])) if "betas" in group else group
            for group in content.values["groups"]
        ]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


class RandomState:
    """Python's, numpy's and torch's generators, the last on the CPU and each CUDA device."""

    def capture(self) -> Content:
        version, internal, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        tensors = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors |= {
                f"cuda{number}": state
                for number, state in enumerate(torch.cuda.get_rng_state_all())
            }
        numpy = [str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)]
        return Content(tensors, {"python": [version, list(internal), gauss], "numpy": numpy})

    def restore(self, content: Content) -> None:
        _require_same("random generators", self.capture().tensors.keys(), content.tensors.keys())
        version, internal, gauss = content.values["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, position, has_gauss, cached = content.values["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(content.tensors["torch"])
        for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            torch.cuda.set_rng_state(content.tensors[f"cuda{number}"], number)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Put every random generator back as it was, whatever was drawn meanwhile."""
    state = RandomState()
    before = state.capture()
    try:
        yield
    finally:
        state.restore(before)


class Values:
    """JSON values that live elsewhere, read by `get` and put back by `set_`."""

    def __init__(self, get: Callable[[], Any], set_: Callable[[Any], None]) -> None:
        self.get, self.set_ = get, set_

    def capture(self) -> Content:
        return Content({}, self.get())

    def restore(self, content: Content) -> None:
        self.set_(content.values)


def write_state(folder: Path, parts: Mapping[str, Part], *, step: int) -> None:
    """Write every part's content into a snapshot's staging folder."""
    contents = {name: part.capture() for name, part in parts.items()}
    tensors = {
        f"{name}:{key}": value
        for name, content in contents.items()
        for key, value in content.tensors.items()
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / _TENSORS)
    values = {name: content.values for name, content in contents.items()}
    # Without indentation, for Python's JSON is ten times as fast then; a long log is in here.
    text = json.dumps(
        {"version": VERSION, "step": step, "values": values}, ensure_ascii=False, allow_nan=False
    )
    (folder / _VALUES).write_text(text, encoding="utf-8")


def read_state(folder: Path, parts: Mapping[str, Part]) -> int:
    """Put every part back as it was and return the step.

    Raises:
        AegisError: if the snapshot is of another version, or its parts are not exactly these.
            Nothing that has been restored by then can be used.
    """
    try:
        raw = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise AegisError(
                f"{folder}: written by version {raw['version']} of this format, this is {VERSION}"
            )
        _require_same("parts", parts.keys(), raw["values"].keys())
        tensors: dict[str, dict[str, Tensor]] = {name: {} for name in parts}
        for key, value in load_file(folder / _TENSORS).items():
            name, _, rest = key.partition(":")
            if name not in tensors:
                raise AegisError(f"the snapshot holds tensors of an unknown part {name!r}")
            tensors[name][rest] = value
        for name, part in parts.items():
            part.restore(Content(tensors[name], raw["values"][name]))
        return int(raw["step"])
    except _UNREADABLE as error:
        raise AegisError(
            f"{folder}: this snapshot cannot be resumed from ({error}); "
            "start anew with --no-auto-resume, or with the version of AEGIS that wrote it"
        ) from error


def _is_number(value: Tensor) -> bool:
    return (
        value.ndim == 0
        and value.dtype == torch.float32
        and value.device.type == "cpu"
        and bool(value.isfinite())
    )


def _require_same(kind: str, own: Iterable[str], saved: Iterable[str]) -> None:
    missing, extra = sorted(set(own) - set(saved)), sorted(set(saved) - set(own))
    if missing or extra:
        raise AegisError(
            f"{kind}: missing {missing[:3] or 'nothing'}, extra {extra[:3] or 'nothing'}"
        )


def _require_shape(name: str, own: Tensor, saved: Tensor) -> None:
    if own.shape != saved.shape or own.dtype != saved.dtype:
        raise AegisError(
            f"{name}: {tuple(saved.shape)} {saved.dtype} saved, "
            f"{tuple(own.shape)} {own.dtype} needed"
        )

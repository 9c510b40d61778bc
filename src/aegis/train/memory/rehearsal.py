"""Run a step of training on weights without content, and count what it allocates.

What a step allocates follows from the code that runs: the model's own layers, PEFT's, gates,
checkpointing, and the objective. So that code runs, with weights on torch's meta device and the
batch's own numbers on the CPU, instead of a formula for each architecture.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from aegis.model.adapted import Adapted
from aegis.train.loop import Objective

META = torch.device("meta")
_aten = torch.ops.aten
_INDEXING = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
)


class Allocations(TorchDispatchMode):
    """Count the bytes of every tensor that comes into being and goes while entered.

    Args:
        known: a module whose parameters and buffers were there before.
    """

    def __init__(self, known: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in (*known.parameters(), *known.buffers()):
            self._sizes[tensor.untyped_storage()._cdata] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, result)
        return result

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage until it goes."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key).atexit = False

    def _release(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)


class Rehearsal(Allocations):
    """Let code that looks at numbers run on meta tensors.

    Whole numbers copied to the meta device stay on the CPU, so that a batch keeps its lengths;
    where they meet a meta tensor, their shape takes part. A number that is not there reads as 1,
    and a condition on such numbers holds everywhere: as many are taken as there can be. They are
    all alike.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or (1.0 if args[0].is_floating_point() else 1)
        if func is _aten._unique2.default and args[0].is_meta:
            one = args[0].new_empty(1)
            return one, torch.zeros_like(args[0], dtype=torch.long), one.long()
        if func is _aten._to_copy.default and (target := kwargs.get("device")) is not None:
            if args[0].is_meta and torch.device(target) != META:
                return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
            whole = not args[0].is_meta and not args[0].is_floating_point()
            if whole and torch.device(target) == META:
                return func(*args, **{**kwargs, "device": "cpu"})
        args, kwargs = _on_one_device(func, args, kwargs)
        result = func(*args, **kwargs)
        tree_map_only(Tensor, lambda tensor: tensor.is_meta and self.count(tensor), result)
        return result


def _on_one_device(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Replace CPU tensors by their shapes where meta tensors take part too."""
    flat, _ = tree_flatten((args, kwargs))
    kinds = {value.is_meta for value in flat if isinstance(value, Tensor)}
    if len(kinds) < 2:
        return args, kwargs
    if func in _INDEXING:  # a mask whose numbers are known selects as many as it says
        indices: list[Any] = []
        for index in args[1]:
            if index is not None and not index.is_meta and index.dtype == torch.bool:
                indices += index.nonzero().unbind(1)
            else:
                indices.append(index)
        args = (args[0], indices, *args[2:])
    flat, structure = tree_flatten((args, kwargs))
    moved = [
        torch.empty_like(value, device=META)
        if isinstance(value, Tensor) and not value.is_meta
        else value
        for value in flat
    ]
    return tree_unflatten(moved, structure)


def peak_bytes(adapted: Adapted, work: Callable[[], object]) -> int:
    """Return the most bytes that are there at once while `work` runs."""
    with _conditions_hold(), Rehearsal(adapted) as rehearsal:
        work()
    return rehearsal.peak


def peak_bytes_of_step(
    adapted: Adapted, objective: Objective[Any], *, bfloat16: bool = False
) -> int:
    """Return the peak of an objective's first step, gradients and what it prepares included.

    Args:
        bfloat16: matrix products in bfloat16, as autocast has them.
    """

    def step() -> None:
        objective.prepare(0, lambda: None)
        for batch in objective.batches(0):
            objective.loss(batch, 0).total.backward()

    try:
        with _autocast() if bfloat16 else contextlib.nullcontext():
            return peak_bytes(adapted, step)
    finally:
        objective.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def _conditions_hold() -> Iterator[None]:
    """Let `nonzero` of a meta tensor give every position."""
    before = symbolic.meta_nonzero_assume_all_nonzero
    symbolic.meta_nonzero_assume_all_nonzero = True
    try:
        yield
    finally:
        symbolic.meta_nonzero_assume_all_nonzero = before


@contextlib.contextmanager
def _autocast() -> Iterator[None]:
    """Multiply in bfloat16; torch's own autocast passes meta tensors by."""

    def cast(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*tensors: Tensor | None, **options: Any) -> Tensor:
            return product(
                *(t.to(torch.bfloat16) if t is not None else None for t in tensors), **options
            )

        return run

    places: list[tuple[Any, str]] = [(functional, "linear"), (torch, "matmul"), (torch, "bmm")]
    plain = [getattr(owner, name) for owner, name in places]
    for (owner, name), product in zip(places, plain, strict=True):
        setattr(owner, name, cast(product))
    try:
        yield
    finally:
        for (owner, name), product in zip(places, plain, strict=True):
            setattr(owner, name, product)

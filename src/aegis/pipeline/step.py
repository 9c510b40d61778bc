"""A step of a run, and a stage of steps: data that the runner works through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import getitem
from pathlib import Path
from typing import Any

from aegis.config import Config
from aegis.pipeline.context import StepContext
from aegis.storage.files import fingerprint

Input = str | Callable[[StepContext], Any]


@dataclass(frozen=True)
class Step:
    """One unit of work whose result is an artifact folder.

    The fingerprint covers `version`, `settings(config)` and the content of `inputs`: nothing else
    makes a result stale.

    Args:
        version: goes up when the same settings and inputs give another result.
        inputs: artifacts of earlier steps by name, and functions that return the content of what
            comes from outside the run, as JSON values.
        settings: dotted paths of the settings that it reads; that of a group stands for all in it.
        run: writes the artifact's files into the folder it is given.
        artifact: the folder's name; the step's own where it is empty.
        settle: does what follows from the artifact outside its folder, where it is computed and
            where it is reused; twice must be as once.
        skip: returns why there is nothing to do, or None; the step then has no artifact.
        metrics: reads from the artifact what the record shows of the step; None: not shown.
        summary: a line for the user, with metrics in braces.
    """

    name: str
    version: int
    inputs: tuple[Input, ...]
    settings: tuple[str, ...]
    run: Callable[[StepContext, Path], None]
    artifact: str = ""
    settle: Callable[[StepContext], None] = lambda _: None
    skip: Callable[[StepContext], str | None] = lambda _: None
    metrics: Callable[[Path], dict[str, Any]] | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "artifact", self.artifact or self.name)

    def fingerprint(self, context: StepContext) -> str:
        """Return what stands for all that the result is made of."""
        settings = read_settings(context.config, self.settings)
        contents = [
            context.contents.get(source) if isinstance(source, str) else source(context)
            for source in self.inputs
        ]
        return fingerprint(self.name, self.version, settings, contents)


@dataclass(frozen=True)
class Stage:
    """Steps that the record shows as one.

    Args:
        check: raises if the stage cannot succeed, before its first step.
        published: files of artifacts that also lie in the session's own folder, by their names in
            the record: `{"report": "results/report.html"}`.
    """

    name: str
    steps: tuple[Step, ...]
    check: Callable[[StepContext], None] = lambda _: None
    published: Mapping[str, str] = field(default_factory=dict)


def read_settings(config: Config, paths: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings at these dotted paths, as JSON values."""
    everything = config.model_dump(mode="json")
    return {path: functools.reduce(getitem, path.split("."), everything) for path in paths}

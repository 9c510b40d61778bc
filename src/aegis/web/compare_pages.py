"""Two runs side by side: the settings that differ, what they measured, curves over each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aegis.errors import AegisError
from aegis.inputs.strict_yaml import read_yaml
from aegis.runs.record import CONFIG
from aegis.web.curves import HEIGHT, WIDTH, Curve
from aegis.web.pages import page, short
from aegis.web.run_list import read_file
from aegis.web.run_pages import RunPages, is_main

Curves = dict[tuple[str, str], Curve]
MISSING = "–"


@dataclass(frozen=True)
class TwoCurves:
    """A value of both runs in one picture; a line is empty where a run has none."""

    training: str
    name: str
    lines: tuple[str, str]
    lasts: tuple[str, str]
    low: str
    high: str
    width: int = WIDTH
    height: int = HEIGHT


@dataclass(frozen=True)
class ComparePages:
    """The page of two runs."""

    runs: RunPages

    def routes(self) -> list[Route]:
        return [Route("/compare", self.show)]

    def show(self, request: Request) -> Response:
        """Show the runs that the address names as `a` and `b`."""
        names = [request.query_params.get(key, "") for key in ("a", "b")]
        first, second = folders = [self.runs.list.folder(name) for name in names]
        return page(
            *(request, "compare.html.j2"),
            rows=[self.runs.list.row(folder) for folder in folders],
            settings=list(differing(settings_of(first), settings_of(second))),
            curves=list(together(self._curves(first), self._curves(second))),
        )

    def _curves(self, folder: Path) -> Curves:
        with self.runs.histories.reading(folder) as history:
            return {
                (training, name): Curve(list(curve.points))
                for training, curves in history.curves.items()
                for name, curve in curves.items()
                if is_main(name) and curve.points
            }


def settings_of(folder: Path) -> dict[str, str]:
    """Return a run's settings by dotted name; none where they cannot be read."""
    try:
        return dict(_flat(read_yaml(read_file(folder / CONFIG), CONFIG)))
    except (AegisError, OSError, ValueError):
        return {}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    elif name:
        yield name, str(value)


def differing(first: dict[str, str], second: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the settings that are not the same, by name, with both values."""
    for name in sorted({*first, *second}):
        values = first.get(name, MISSING), second.get(name, MISSING)
        if values[0] != values[1]:
            yield name, *values


def together(first: Curves, second: Curves) -> Iterator[TwoCurves]:
    """Yield each value that a run has measured, of both on the same axes."""
    for key in sorted({*first, *second}):
        both = [curves.get(key, Curve()) for curves in (first, second)]
        points = [point for curve in both for point in curve.points]
        steps = min(step for step, _ in points), max(step for step, _ in points)
        bounds = min(value for _, value in points), max(value for _, value in points)
        one, other = (curve.line(steps, bounds) for curve in both)
        lasts = [short(curve.last) if curve.points else MISSING for curve in both]
        low, high = short(bounds[0]), short(bounds[1])
        yield TwoCurves(*key, (one, other), (lasts[0], lasts[1]), low, high)

"""The list of runs, and one run as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aegis.errors import AegisError
from aegis.runs.record import load
from aegis.web.curves import HEIGHT, WIDTH, Curve
from aegis.web.pages import page, short
from aegis.web.run_history import Histories, RunHistory
from aegis.web.run_list import RunList

_FIRST = ("loss", "reward", "kl", "alpha", "g", "accuracy", "tokens_per_second")


@dataclass(frozen=True)
class Chart:
    """One curve as a picture: the points of its line, and what the axes say.

    Args:
        main: it is shown at once; the others are behind a click.
    """

    name: str
    line: str
    last: str
    low: str
    high: str
    steps: tuple[int, int]
    missing: int
    main: bool
    width: int = WIDTH
    height: int = HEIGHT


class RunPages:
    """The pages of the runs in a folder."""

    def __init__(self, runs: Path) -> None:
        self.list, self.histories = RunList(runs), Histories()

    def routes(self) -> list[Route]:
        return [Route("/runs", self.show_list), Route("/runs/{name}", self.show_run)]

    def show_list(self, request: Request) -> Response:
        """Show the newest runs."""
        rows, count = self.list.rows()
        return page(request, "runs.html.j2", rows=rows, count=count, runs=str(self.list.runs))

    def show_run(self, request: Request) -> Response:
        """Show a run: stages, progress, curves, warnings and log as of now."""
        folder = self.list.folder(request.path_params["name"])
        row, session, problem = self.list.row(folder), None, ""
        try:
            session = load(folder)
        except AegisError as error:
            problem = str(error)
        with self.histories.reading(folder) as history:
            return page(
                request,
                "run.html.j2",
                row=row,
                session=session,
                problem=problem,
                history=history,
                trainings={name: charts(history, name) for name in history.curves},
            )


def charts(history: RunHistory, training: str) -> list[Chart]:
    """Return a training's curves, those that matter most first."""
    curves = {name: curve for name, curve in history.curves[training].items() if curve.points}
    names = sorted(curves, key=lambda name: (not _is_main(name), name))
    return [_chart(name, curves[name]) for name in names]


def _is_main(name: str) -> bool:
    return name in _FIRST or name.startswith(("reward", "kl"))


def _chart(name: str, curve: Curve) -> Chart:
    steps, (low, high) = (curve.points[0][0], curve.points[-1][0]), curve.bounds
    line = curve.line(steps, (low, high))
    ends = (short(curve.last), short(low), short(high))
    return Chart(name, line, *ends, steps, curve.missing, _is_main(name))

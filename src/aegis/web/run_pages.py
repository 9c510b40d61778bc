"""The list of runs, and one run as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import Route

from aegis.errors import AegisError, BadInputError
from aegis.runs.record import load, session_folders
from aegis.runs.supervisor import System
from aegis.web.curves import HEIGHT, WIDTH, Curve
from aegis.web.forms import with_form
from aegis.web.pages import HEADERS, page, short
from aegis.web.run_control import resume_run, stop_run
from aegis.web.run_history import Histories, RunHistory
from aegis.web.run_list import RunList

_REPORT = "report.html"
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

    def __init__(self, runs: Path, system: System | None = None) -> None:
        self.list, self.histories = RunList(runs), Histories()
        self.system = system or System()

    def routes(self) -> list[Route]:
        return [
            Route("/runs", self.show_list),
            Route("/runs/{name}", self.show_run),
            Route("/runs/{name}/report", self.report),
            Route("/runs/{name}/{act}", with_form(self.act), methods=["POST"]),
        ]

    def show_list(self, request: Request) -> Response:
        """Show the newest runs."""
        rows, count = self.list.rows()
        return page(request, "runs.html.j2", rows=rows, count=count, runs=str(self.list.runs))

    def show_run(self, request: Request) -> Response:
        """Show a run: stages, progress, curves, warnings and log as of now."""
        return self._page(request, self.list.folder(request.path_params["name"]))

    def act(self, request: Request, _: dict[str, str]) -> Response:
        """Stop a run, or go on with it."""
        acts = {"stop": stop_run, "resume": resume_run}
        folder, act = self.list.folder(request.path_params["name"]), request.path_params["act"]
        if act not in acts:
            raise BadInputError(f"{act}: is nothing that can be done to a run")
        try:
            acts[act](folder, self.system)
        except AegisError as error:
            return self._page(request, folder, problem=str(error))
        return RedirectResponse(f"/ui/runs/{quote(folder.name)}", 303)

    def report(self, request: Request) -> Response:
        """Give out the run's report, which is one HTML file, to be kept."""
        folder = self.list.folder(request.path_params["name"])
        if not (folder / _REPORT).is_file():
            raise BadInputError(f"{folder.name}: has no report yet; it is written at the end")
        return FileResponse(folder / _REPORT, headers=HEADERS, filename=f"{folder.name}.html")

    def _page(self, request: Request, folder: Path, *, problem: str = "") -> Response:
        row, session = self.list.row(folder), None
        try:
            session = load(folder)
        except AegisError as error:
            problem = problem or str(error)
        with self.histories.reading(folder) as history:
            return page(
                *(request, "run.html.j2"),
                status=409 if problem and session else 200,
                row=row,
                others=[other.name for other in session_folders(self.list.runs) if other != folder],
                has_report=(folder / _REPORT).is_file(),
                session=session,
                problem=problem,
                history=history,
                trainings={name: charts(history, name) for name in history.curves},
            )


def charts(history: RunHistory, training: str) -> list[Chart]:
    """Return a training's curves, those that matter most first."""
    curves = {name: curve for name, curve in history.curves[training].items() if curve.points}
    names = sorted(curves, key=lambda name: (not is_main(name), name))
    return [_chart(name, curves[name]) for name in names]


def is_main(name: str) -> bool:
    """Return whether a curve of this name is among those that matter most."""
    return name in _FIRST or name.startswith(("reward", "kl"))


def _chart(name: str, curve: Curve) -> Chart:
    steps, (low, high) = (curve.points[0][0], curve.points[-1][0]), curve.bounds
    line = curve.line(steps, (low, high))
    ends = (short(curve.last), short(low), short(high))
    return Chart(name, line, *ends, steps, curve.missing, is_main(name))

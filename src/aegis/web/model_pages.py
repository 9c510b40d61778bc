"""What needs the served model: a chat with it, and its verdicts on a list of prompts."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from aegis.data.records import require_text
from aegis.engine.verdict import Verdict
from aegis.errors import AegisError, BadInputError
from aegis.inputs.strict_json import parse_object
from aegis.protocol.decisions import NAMES, parse_decision
from aegis.serve.service import AnswerService
from aegis.web.forms import with_form
from aegis.web.pages import page

_MOST_ROWS, _MOST_BYTES, _BATCH = 500, 1 << 17, 32


@dataclass(frozen=True)
class Asked:
    """A prompt with the right decision's name, which may be empty."""

    prompt: str
    truth: str = ""


@dataclass(frozen=True)
class JudgedPrompt:
    """A prompt and what the model decided about it."""

    asked: Asked
    verdict: Verdict


class ModelPages:
    """The pages that ask the model; None where none is served."""

    def __init__(self, service: AnswerService | None) -> None:
        self.service = service
        self.model = service and service.settings.model_name

    def routes(self) -> list[Route]:
        return [
            Route("/ask", self.ask),
            Route("/judge", self.show_judge),
            Route("/judge", with_form(self.judge), methods=["POST"]),
        ]

    def ask(self, request: Request) -> Response:
        """Show an empty chat; the page's script asks the server's own API."""
        return page(request, "ask.html.j2", model=self.model, names=NAMES)

    def show_judge(self, request: Request) -> Response:
        """Show where prompts go."""
        return self._page(request, [], typed="")

    def judge(self, request: Request, form: dict[str, str]) -> Response:
        """Show the verdicts, or what is wrong with the prompts, which stay."""
        typed = form.get("prompts", "")
        try:
            return self._page(request, self._judged(read_prompts(typed)), typed=typed)
        except AegisError as error:
            return self._page(request, [], typed=typed, problem=str(error))

    def _judged(self, asked: list[Asked]) -> list[JudgedPrompt]:
        if self.service is None:
            raise BadInputError("no model is served here; start one with `aegis serve MODEL`")
        rows: list[JudgedPrompt] = []
        for start in range(0, len(asked), _BATCH):
            part = asked[start : start + _BATCH]
            verdicts = self.service.engine.judge([row.prompt for row in part])
            rows += map(JudgedPrompt, part, verdicts)
        return rows

    def _page(
        self, request: Request, rows: list[JudgedPrompt], *, typed: str, problem: str = ""
    ) -> Response:
        return page(
            *(request, "judge.html.j2"),
            status=400 if problem else 200,
            model=self.model,
            names=list(NAMES),
            rows=rows,
            typed=typed,
            problem=problem,
            most_rows=_MOST_ROWS,
            most_bytes=_MOST_BYTES,
        )


def read_prompts(text: str) -> list[Asked]:
    """Return the prompts of a text: JSON Lines, CSV with a column `prompt`, or one a line.

    Raises:
        BadInputError: if there is none, there are too many, or a line cannot be used.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise BadInputError("there are no prompts; write one a line")
    if lines[0].lstrip().startswith("{"):
        rows = [parse_object(line, f"line {n}") for n, line in enumerate(lines, 1)]
    elif "prompt" in next(csv.reader(lines[:1]), []) and len(lines) > 1:
        rows = _csv_rows(text)
    else:
        rows = [{"prompt": line} for line in lines]
    if len(rows) > _MOST_ROWS:
        raise BadInputError(
            f"{len(rows)} prompts, and {_MOST_ROWS} are judged here; use `aegis judge --input FILE`"
        )
    return [_asked(row, f"prompt {number}") for number, row in enumerate(rows, 1)]


def _csv_rows(text: str) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise BadInputError(f"the CSV cannot be read ({error}); quote what holds commas") from None


def _asked(row: dict[str, Any], where: str) -> Asked:
    truth = row.get("decision")
    if truth:
        parse_decision(truth, where=where)
    return Asked(require_text(row.get("prompt"), "prompt", where), truth or "")

"""The queue of escalated cases, one at a time for each reviewer."""

from __future__ import annotations

import getpass
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from aegis.audit import AuditEntry, AuditKeys, AuditLog
from aegis.audit.keystore import default_keys_folder
from aegis.errors import AegisError, BadInputError
from aegis.protocol.decisions import NAMES, Decision
from aegis.protocol.fixed_texts import decided_text
from aegis.serve.escalations import Case, ResolvedError
from aegis.serve.reviews import ClaimedError, Review, ReviewDesk, Reviewer, TooLateError
from aegis.serve.schemas import MOST_CHARACTERS
from aegis.web.forms import with_form
from aegis.web.pages import page

_HOLDER_COOKIE, _NAME_COOKIE = "aegis_reviewer", "aegis_reviewer_name"
_HOLDER, _CASE = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{32}")
_MOST_NAME = 64
_CONFLICTS = (ResolvedError, ClaimedError, TooLateError)


class ReviewPages:
    """The pages of a review desk; None where there is no queue."""

    def __init__(self, desk: ReviewDesk | None) -> None:
        self.desk = desk

    def routes(self) -> list[Route]:
        return [
            Route("/review", self.show),
            Route("/review/next", with_form(self.take_next), methods=["POST"]),
            Route("/review/{id}/{act}", with_form(self.act), methods=["POST"]),
        ]

    def show(self, request: Request) -> Response:
        """Show the case that this browser has claimed, or how many wait."""
        if self.desk is None:
            return page(request, "review.html.j2", desk=None)
        reviewer, answered = reviewer_of(request), request.query_params.get("answered", "")
        answered = answered if _CASE.fullmatch(answered) else ""
        return self._page(request, self.desk.held(reviewer), answered=answered)

    def take_next(self, request: Request, form: dict[str, str]) -> Response:
        """Claim the oldest case that nobody has."""
        reviewer = _renamed(reviewer_of(request), form.get("name", ""))
        self._desk.claim_next(reviewer)
        response = RedirectResponse("/ui/review", 303)
        cookies = {_HOLDER_COOKIE: reviewer.holder, _NAME_COOKIE: quote(reviewer.name)}
        for name, value in cookies.items():
            response.set_cookie(name, value, path="/ui", httponly=True, samesite="strict")
        return response

    def act(self, request: Request, form: dict[str, str]) -> Response:
        """Answer a case, pass it on, or undo an answer; what was typed is kept where that fails."""
        id, act = request.path_params["id"], request.path_params["act"]
        reviewer = reviewer_of(request)
        try:
            if act == "answer":
                case = self._desk.cases.get(id)
                self._desk.decide(id, review_of(case, form), reviewer)
                self._desk.claim_next(reviewer)
                return RedirectResponse(f"/ui/review?answered={id}", 303)
            if act == "undo":
                self._desk.undo(id, reviewer)
            elif act == "pass":
                self._desk.pass_on(id, reviewer)
            else:
                raise BadInputError(f"{act}: is nothing that can be done to a case")
            return RedirectResponse("/ui/review", 303)
        except AegisError as error:
            case = self._desk.held(reviewer)
            status = 409 if isinstance(error, _CONFLICTS) else (error.exit_code == 2 and 400) or 503
            return self._page(request, case, status=status, problem=str(error), typed=form)

    @property
    def _desk(self) -> ReviewDesk:
        if self.desk is None:
            raise BadInputError("there is no queue here; `aegis serve` makes it beside its model")
        return self.desk

    def _page(
        self,
        request: Request,
        case: Case | None,
        *,
        status: int = 200,
        answered: str = "",
        problem: str = "",
        typed: dict[str, str] | None = None,
    ) -> Response:
        chances = list(zip(NAMES, case.probabilities, strict=True)) if case else []
        return page(
            *(request, "review.html.j2"),
            status=status,
            desk=self._desk,
            waiting=self._desk.cases.waiting(),
            name=reviewer_of(request).name,
            case=case,
            chances=chances,
            answered=answered,
            problem=problem,
            typed=typed or {},
        )


def reviewer_of(request: Request) -> Reviewer:
    """Return who this browser is: the name that was given, or the user's own."""
    holder = request.cookies.get(_HOLDER_COOKIE, "")
    holder = holder if _HOLDER.fullmatch(holder) else secrets.token_hex(16)
    return _renamed(Reviewer(_user(), holder), unquote(request.cookies.get(_NAME_COOKIE, "")))


def review_of(case: Case, form: dict[str, str]) -> Review:
    """Return what the form says; without an answer, the asker gets the decision's fixed text.

    Raises:
        BadInputError: if there is no decision, an allowed question has no answer, or a text is
            too long.
    """
    name, answer, note = form.get("decision", ""), form.get("answer", "").strip(), form.get("note")
    note = (note or "").strip()
    if name not in NAMES:
        raise BadInputError("choose one of the four decisions")
    if max(len(answer), len(note)) > MOST_CHARACTERS:
        raise BadInputError(f"answer and note may have {MOST_CHARACTERS} characters; shorten them")
    decision = Decision[name]
    if not answer and decision is Decision.ALLOW:
        raise BadInputError("write an answer: what is allowed has no fixed text")
    return Review(decision, answer or decided_text(decision, case.query, crisis=False), note)


def audit_recorder(folder: Path) -> Callable[[AuditEntry], object]:
    """Return what appends to the log in a folder, which is open only meanwhile."""

    def record(entry: AuditEntry) -> None:
        with AuditLog.open(folder, AuditKeys.load(default_keys_folder(folder))) as log:
            log.append(entry)

    return record


def _renamed(reviewer: Reviewer, name: str) -> Reviewer:
    name = "".join(mark for mark in name.strip() if mark.isprintable())[:_MOST_NAME]
    return Reviewer(name or reviewer.name, reviewer.holder)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "local"

"""What a person has to decide: list, read and resolve cases."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query

from aegis.serve import schemas
from aegis.serve.escalations import Case, NoCaseError
from aegis.serve.routes import AskerOrReviewer, Parts, Reviewer, StrictRoute, errors

router = APIRouter(prefix="/escalations", tags=["escalations"], route_class=StrictRoute)
CaseId = Annotated[str, Path(pattern=r"^(chatcmpl-)?[0-9a-f]{32}$")]


@router.get("", responses=errors())
def list_cases(
    _: Reviewer,
    parts: Parts,
    state: Annotated[Literal["open", "resolved"], Query()] = "open",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> schemas.CaseList:
    """List cases that wait, the oldest first; or resolved ones, the newest first."""
    cases = parts.cases.list(resolved=state == "resolved", limit=limit)
    views = [_view(case, whole=True) for case in cases]
    return schemas.CaseList(cases=views, waiting=parts.cases.waiting())


@router.get("/{id}", responses=errors(404))
def get_case(id: CaseId, caller: AskerOrReviewer, parts: Parts) -> schemas.CaseView:
    """Return a case: the whole of it for reviewers, the answer for whoever asked."""
    case = parts.cases.get(id.removeprefix("chatcmpl-"))
    whole = "review" in caller.scopes
    if not whole and case.owner != caller.id:
        raise NoCaseError("there is no such case")
    return _view(case, whole=whole)


@router.post("/{id}", responses=errors(404, 409, 507))
def resolve_case(
    id: CaseId, body: schemas.Resolution, caller: Reviewer, parts: Parts
) -> schemas.CaseView:
    """Answer a case. The first answer stands."""
    case_id, reviewer = id.removeprefix("chatcmpl-"), caller.name or "local"
    return _view(parts.cases.resolve(case_id, body.answer, reviewer=reviewer), whole=True)


def _view(case: Case, *, whole: bool) -> schemas.CaseView:
    return schemas.CaseView(
        id=case.id,
        state="resolved" if case.resolved else "open",
        opened=case.opened,
        resolved=case.resolved,
        answer=case.answer,
        query=case.query if whole else None,
        user=case.user if whole else None,
        reviewer=case.reviewer if whole else None,
        probabilities=schemas.probabilities(case.probabilities) if whole else None,
    )

"""aegis review: what a person has to decide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from aegis.serve.escalations import CaseQueue

app = typer.Typer(
    help="Look at what the server handed over to a person, and answer it; the asker fetches the answer by the case's id.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
File = Annotated[Path, typer.Option("--cases", help="The queue of `aegis serve`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[
    str, typer.Argument(help="The case's id, or as much of its beginning as no other has.")
]
_FILE = Path("runs/latest/escalations.db")


@app.command("list")
def list_(
    cases: File = _FILE,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Those that have their answer, the newest first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    json: Json = False,
) -> None:
    """Show the cases that wait, the oldest first."""
    from dataclasses import asdict

    from aegis.cli.show import print_json, print_table

    queue = _queue(cases)
    found = queue.list(resolved=resolved, limit=limit)
    if json:
        print_json([asdict(case) for case in found])
        return
    rows = [
        (
            case.id[:8],
            case.opened,
            case.user,
            " ".join(case.query.split())[:80],
            case.reviewer or "",
        )
        for case in found
    ]
    rows = [tuple(map(_harmless, row)) for row in rows]
    print_table(
        ("id", "since", "user", "question", "reviewer"), rows, title=f"{queue.waiting()} waiting"
    )


@app.command("show")
def show(id: Id, cases: File = _FILE, json: Json = False) -> None:
    """Show one case whole."""
    from dataclasses import asdict

    from aegis.cli.show import print_json
    from aegis.protocol.decisions import NAMES

    case = _queue(cases).find(id)
    if json:
        print_json(asdict(case))
        return
    chances = "  ".join(
        f"{name} {chance:.2f}" for name, chance in zip(NAMES, case.probabilities, strict=True)
    )
    typer.echo(
        f"{case.id}\nsince {case.opened}, from {_harmless(case.user) or 'nobody named'}\n{chances}\n\n{_harmless(case.query)}"
    )
    if case.answer is not None:
        typer.echo(f"\nanswered {case.resolved} by {case.reviewer}:\n{case.answer}")


@app.command("answer")
def answer(
    id: Id,
    text: Annotated[str, typer.Argument(help="What the asker is told.")],
    cases: File = _FILE,
    reviewer: Annotated[
        str | None, typer.Option(help="Who decides; by default your user name.")
    ] = None,
    json: Json = False,
) -> None:
    """Answer a case. The first answer stands."""
    import getpass
    from dataclasses import asdict

    from aegis.cli.show import print_json, print_note
    from aegis.data.records import require_text

    queue = _queue(cases)
    said = require_text(text, "answer", "argument")
    case = queue.resolve(queue.find(id).id, said, reviewer=reviewer or getpass.getuser())
    if json:
        print_json(asdict(case))
    else:
        print_note(f"{case.id} is answered; {queue.waiting()} waiting")


def _queue(path: Path) -> CaseQueue:
    from aegis.errors import BadInputError
    from aegis.runs.record import locate
    from aegis.serve.escalations import CaseQueue

    found = locate(path)
    if not found.is_file():
        raise BadInputError(
            f"{path}: no such queue; `aegis serve` makes it beside its model, or give --cases FILE"
        )
    return CaseQueue(found)


def _harmless(text: str) -> str:
    """The text without what would move the terminal's cursor or colour it: whoever asked may have
    written it."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else "�" for character in text
    )

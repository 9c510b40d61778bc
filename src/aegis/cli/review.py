"""aegis review: what a person has to decide."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis.cli.options import INPUT, AsJson, OutputFile, group, number
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import BadInputError

if TYPE_CHECKING:
    from aegis.serve.escalations import CaseQueue

app = group(
    "Look at what the server handed over to a person, and answer it; "
    "the asker fetches the answer by the case's id."
)
_ID = "The case's id, or as much of its beginning as no other has."
_RESOLVED = "Those that have their answer, the newest first."
_REVIEWER = "Who decides; by default your user name."
Id = Annotated[str, typer.Argument(help=_ID)]
File = Annotated[Path, typer.Option("--cases", help="The queue of `aegis serve`.", callback=INPUT)]
_FILE = Path("runs/latest/escalations.db")


@app.command("list")
def list_(
    cases: File = _FILE,
    resolved: Annotated[bool, typer.Option("--resolved", help=_RESOLVED)] = False,
    limit: Annotated[int, number(help="At most so many.", least=1, most=1000)] = 50,
    json: AsJson = False,
) -> None:
    """Show the cases that wait, the oldest first."""
    queue = _open_queue(cases, writable=False)
    shown = queue.list(resolved=resolved, limit=limit)
    if json:
        print_json([asdict(case) for case in shown])
        return
    rows = []
    for case in shown:
        question = " ".join(case.query.split())[:80]
        rows.append((case.id[:8], case.opened, case.user, question, case.reviewer or ""))
    columns = ("id", "since", "user", "question", "reviewer")
    print_table(columns, rows, title=f"{queue.waiting()} waiting")


@app.command()
def show(id: Id, cases: File = _FILE, json: AsJson = False) -> None:
    """Show one case whole."""
    from aegis.protocol.decisions import NAMES

    case = _open_queue(cases, writable=False).find(id)
    if json:
        print_json(asdict(case))
        return
    chances = [f"{name} {p:.2f}" for name, p in zip(NAMES, case.probabilities, strict=True)]
    user = case.user or "nobody named"
    echo(f"{case.id}\nsince {case.opened}, from {user}\n{'  '.join(chances)}\n")
    echo(case.query)
    if case.answer is not None:
        echo(f"\nanswered {case.resolved} by {case.reviewer}:\n{case.answer}")


@app.command()
def answer(
    id: Id,
    text: Annotated[str, typer.Argument(help="What the asker is told.")],
    cases: File = _FILE,
    reviewer: Annotated[str | None, typer.Option(help=_REVIEWER)] = None,
    json: AsJson = False,
) -> None:
    """Answer a case. The first answer stands."""
    import getpass

    from aegis.data.records import require_text

    queue, reply = _open_queue(cases), require_text(text, "answer", "argument")
    case = queue.resolve(queue.find(id).id, reply, reviewer=reviewer or getpass.getuser())
    if json:
        print_json(asdict(case))
    else:
        print_note(f"{case.id} is answered; {queue.waiting()} waiting")


@app.command()
def export(output: OutputFile = None, cases: File = _FILE, json: AsJson = False) -> None:
    """Write what people decided on the page as records for `data.records`, with personal data
    masked. An answer of `aegis review answer` tells no decision, and is none of them."""
    from aegis.data.formats.write import write_file
    from aegis.serve.reviews import reviewed_records

    records = list(reviewed_records(_open_queue(cases, writable=False)))
    if not records:
        raise BadInputError(
            f"{cases}: nobody has decided a case yet; review some with `aegis ui --cases {cases}`"
        )
    if output:
        write_file(output, records)
        print_note(f"{len(records)} records in {output}")
    if json or not output:
        print_json([record.to_json() for record in records])


def _open_queue(path: Path, *, writable: bool = True) -> CaseQueue:
    from aegis.runs.record import locate
    from aegis.serve.escalations import CaseQueue

    located = locate(path)
    if not located.is_file():
        raise BadInputError(
            f"{path}: no such queue; `aegis serve` makes it beside its model, or give --cases FILE"
        )
    return CaseQueue(located, writable=writable)

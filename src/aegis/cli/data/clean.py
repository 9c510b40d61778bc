"""aegis data clean and aegis data explain: what is worth training on, and why the rest is not."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.options import INPUT, OUTPUT_FOLDER, AsJson, Overrides, locate_model, number
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import BadInputError

if TYPE_CHECKING:
    from aegis.data.clean.finish import Judge
    from aegis.data.clean.run import Cleaning

_INPUTS = "JSON Lines files of records, pairs, texts or prompts, or data folders."
_OUTPUT = "The data folder to write."
_HELD_OUT = "File of prompts that nothing may be nearly the same as; may be given again."
_PROCESSES = "Processes; the result is the same whatever their number. By default one a core."
_MODEL = "Model that judges the decisions; by default a probe learns them from the other records."
_CLUSTER = (
    "File like examples/cluster.yaml: run on datatrove's executors, here, on Slurm or on Ray."
)
_CHECK = "Set records aside whose decision the judge contradicts."
_ID = "The item's id, or the file and line that it was read from, as FILE:LINE."
_QUEUE = "escalations.db"


def clean(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN…", help=_INPUTS, callback=INPUT)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    held_out: Annotated[list[Path] | None, typer.Option(help=_HELD_OUT, callback=INPUT)] = None,
    processes: Annotated[int | None, number(help=_PROCESSES, least=1, most=256)] = None,
    model: Annotated[Path | None, typer.Option(help=_MODEL, callback=INPUT)] = None,
    cluster: Annotated[Path | None, typer.Option(help=_CLUSTER, callback=INPUT)] = None,
    check_decisions: Annotated[bool, typer.Option(help=_CHECK)] = True,
    overrides: Overrides = None,
    json: AsJson = False,
) -> None:
    """Mask, normalise, filter, remove duplicates, check decisions, balance.

    Every rejected item is kept with its reason; a killed run goes on with the same command.
    """
    from aegis.config.loading import settings_from
    from aegis.data.clean.run import Cleaning, clean_files

    changes = [f"data.quality.{override}" for override in overrides or ()]
    quality = settings_from(changes).data.quality
    quality = quality.model_copy(update={"route_toxic": True, "check_decisions": check_decisions})
    name, judge = _judge(model) if model else ("", None)
    cleaning = Cleaning(tuple(inputs), quality, tuple(held_out or ()), name)
    if cluster and not _ran_on_cluster(cleaning, output, cluster):
        print_note(f"submitted; {output} is there when the last job is done")
        return
    cores = processes or os.cpu_count() or 1
    statistics = clean_files(cleaning, output, processes=cores, judge=judge)
    waiting = _queue_disagreements(output)
    if json:
        print_json({"folder": str(output), "waiting": waiting, **statistics})
        return
    rows = [
        (step, reason, f"{count:,}")
        for step, reasons in statistics["rejected"].items()
        for reason, count in reasons.items()
    ]
    counts = ", ".join(f"{count:,} {kind}" for kind, count in statistics["counts"].items())
    print_table(("step", "set aside because", "items"), rows, title=f"{output}: {counts}")
    if waiting:
        print_note(
            f"{waiting} decisions wait for a person: aegis review list --cases {output / _QUEUE}"
        )


def explain(
    id: Annotated[str, typer.Argument(help=_ID)],
    folder: Annotated[Path, typer.Argument(help="The data folder.", callback=INPUT)],
    json: AsJson = False,
) -> None:
    """Tell an item's whole way: what each step did to it, and where it is now."""
    from aegis.data.clean.explain import explain as ways_of
    from aegis.runs.record import locate

    ways = ways_of(locate(folder), id)
    if json:
        print_json([asdict(way) for way in ways])
        return
    for way in ways:
        echo(f"{way.id}, read from {way.came_from}")
        for told in way.steps:
            shown = {key: value for key, value in told.items() if key not in ("step", "version")}
            echo(f"  {told['step']} {told['version']}: {_shown(shown)}")
        if way.lies_in:
            echo(f"  now in {way.lies_in}: {_shown(way.row)}")


def _shown(value: dict[str, Any]) -> str:
    import json

    return json.dumps(value, ensure_ascii=False) if value else "no change"


def _ran_on_cluster(cleaning: Cleaning, output: Path, file: Path) -> bool:
    from aegis.data.clean.cluster import clean_on_cluster, read_cluster

    if cleaning.model:
        raise BadInputError("--model works in this process; leave out --cluster or --model")
    return clean_on_cluster(cleaning, output, read_cluster(file))


def _judge(model: Path) -> tuple[str, Judge]:
    """Return what the model is made of and the judge, which is loaded when it is first asked."""
    from functools import cache

    from aegis.storage.files import fingerprint, hash_file

    folder = locate_model(model)
    name = fingerprint([hash_file(path) for path in sorted(folder.glob("*.safetensors"))])

    @cache
    def loaded() -> Any:
        from aegis.engine.judge import Judge as Model

        return Model.load(folder)

    return name, lambda prompts: [
        verdict.probabilities for verdict in loaded().judge(list(prompts))
    ]


def _queue_disagreements(folder: Path) -> int:
    """Put what a person has to decide into an escalation queue beside it, once.

    Returns:
        how many cases wait.
    """
    from aegis.data.clean.finish import DISAGREEMENTS
    from aegis.data.records import read_rows
    from aegis.serve.escalations import CaseQueue

    path = folder / _QUEUE
    rows = read_rows(folder / DISAGREEMENTS)
    if not rows and not path.exists():
        return 0
    queue = CaseQueue(path)
    known = {case.id for case in queue.list(limit=-1)}
    known |= {case.id for case in queue.list(resolved=True, limit=-1)}
    for row in rows:
        if row["id"] not in known:
            chances = tuple(row["probabilities"])
            query = f"{row['prompt']}\n\n[{row['reason']}]"
            asker = {"owner": "aegis data clean", "user": ""}
            queue.open(row["id"], query=query, probabilities=chances, **asker)
    waiting = queue.waiting()
    queue.close()
    return waiting

"""aegis data generate: a model writes records about topics."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.options import DAY_S, INPUT, MAX_SEED, OUTPUT_FOLDER, AsJson, number
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import BadInputError

if TYPE_CHECKING:
    from aegis.data.records import Rejected
    from aegis.data.sources.generate.backend import Backend
    from aegis.data.sources.generate.calls import Calls
    from aegis.data.sources.generate.choose import BackendChoice
    from aegis.data.sources.generate.estimate import Estimate
    from aegis.data.sources.generate.run import Generated, TopicPlan
    from aegis.data.topics import Topic, TopicList

_TOPICS = "YAML list of topics, or JSON Lines, e.g. examples/topics_ja.yaml."
_OUTPUT = "The data folder to write; what is paid for is kept beside it, in DIR.calls."
_BACKEND = "local, codex, gemini, claude, cli:'COMMAND {model}', or openai for any such server."
_MODEL = "The model's name; for local a folder, hub id or GGUF file."
_URL = "Of an OpenAI-compatible server, up to /v1."
_KEY_ENV = "The environment variable that holds the server's key."
_PASS_ENV = "Let a command line see this environment variable, too."
_QUESTIONS = "Questions a topic; the local model keeps to the topic's own."
_CONCURRENCY = "Calls under way at a time; the local model answers in batches."
_TIMEOUT = "Seconds that a call may take."
_RETRIES = "How often a call that failed is made again."
_LIMIT = "At most so many topics."
_MAX_REQUESTS = "Stop before more calls, those of earlier runs into DIR counted."
_MAX_TOKENS = "Stop before more tokens, those of earlier runs counted."
_MAX_COST = "Stop before more US dollars, those of earlier runs counted."
_MAX_SECONDS = "Begin no call after so many seconds."
_PRICES = "YAML of MODEL: {input: USD, output: USD} a million tokens, before our own."
_DRY_RUN = "Tell what it would take; call nothing."
_SKIP_BAD = "Set lines that are no topic aside."
_MOST = 10**9


@dataclass(frozen=True)
class _Job:
    """What is to be done, by whom, and the options of `Calls`."""

    topics: list[Topic]
    aside: list[Rejected]
    backend: Backend
    plan: TopicPlan
    options: dict[str, Any]


def generate(
    topics: Annotated[Path, typer.Argument(help=_TOPICS, callback=INPUT)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)
    ] = None,
    backend: Annotated[str, typer.Option(help=_BACKEND)] = "local",
    model: Annotated[str | None, typer.Option("--model", help=_MODEL)] = None,
    url: Annotated[str, typer.Option(help=_URL)] = "https://api.openai.com/v1",
    key_env: Annotated[str, typer.Option(help=_KEY_ENV)] = "OPENAI_API_KEY",
    pass_env: Annotated[list[str] | None, typer.Option(help=_PASS_ENV)] = None,
    questions: Annotated[int, number(help=_QUESTIONS, least=1, most=20)] = 1,
    limit: Annotated[int | None, number(help=_LIMIT, least=1, most=_MOST)] = None,
    concurrency: Annotated[int, number(help=_CONCURRENCY, least=1, most=64)] = 4,
    timeout: Annotated[float, number(help=_TIMEOUT, least=1, most=DAY_S)] = 300,
    retries: Annotated[int, number(help=_RETRIES, least=0, most=20)] = 4,
    max_requests: Annotated[int | None, number(help=_MAX_REQUESTS, least=0, most=_MOST)] = None,
    max_tokens: Annotated[int | None, number(help=_MAX_TOKENS, least=0, most=10**12)] = None,
    max_cost: Annotated[float | None, number(help=_MAX_COST, least=0, most=1e6)] = None,
    max_seconds: Annotated[float | None, number(help=_MAX_SECONDS, least=0, most=1e7)] = None,
    prices: Annotated[Path | None, typer.Option(help=_PRICES, callback=INPUT)] = None,
    seed: Annotated[int, number(help="Of the local model.", least=0, most=MAX_SEED)] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP_BAD)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help=_DRY_RUN)] = False,
    json: AsJson = False,
) -> None:
    """Make records of topics: research notes → questions → thinking with a decision → a pair.

    Killed or stopped, the same command goes on; no answer is paid for twice.
    """
    from aegis.data.folder import KIND
    from aegis.data.sources.generate.calls import Patience
    from aegis.data.sources.generate.choose import BackendChoice
    from aegis.data.sources.generate.ledger import Ceilings
    from aegis.data.sources.generate.prices import find_price, load_prices
    from aegis.data.sources.generate.run import TopicPlan
    from aegis.storage.artifact import require_output

    choice = BackendChoice(backend, model, url, key_env, tuple(pass_env or ()), timeout)
    table = load_prices(prices)
    priced = backend in ("local", "claude") or find_price(table, model) is not None
    if max_cost is not None and not priced:
        raise BadInputError(
            f"--max-cost: the price of --model {model} is not known; give it by --prices FILE"
        )
    if output:
        require_output(output, kind=KIND, inputs=[topics])
    elif not dry_run:
        raise BadInputError("-o DIR is needed; name the data folder to write")
    options: dict[str, Any] = {
        "ceilings": Ceilings(max_requests, max_tokens, max_cost, max_seconds),
        "prices": table,
        "patience": Patience(retries=retries),
    }
    plan = TopicPlan(questions=questions, concurrency=1 if backend == "local" else concurrency)
    read, opened = _read_topics(topics, skip_bad), _open(choice, seed, dry_run=dry_run)
    job = _Job(read.topics[:limit], read.rejected, opened, plan, options)
    if dry_run:
        _show_estimate(_estimated(job, output, priced), job.backend, json)
    elif output:
        _generate(job, output, as_json=json)


def _read_topics(path: Path, skip_bad: bool) -> TopicList:
    from aegis.data.topics import read_topics

    read = read_topics(path, skip_bad=skip_bad)
    if read.encoding:
        print_note(f"{path} is read as {read.encoding}")
    if bad := read.rejected:
        print_note(f"{len(bad)} lines set aside, the first: {bad[0].where}: {bad[0].reason}")
    return read


def _open(choice: BackendChoice, seed: int, *, dry_run: bool) -> Backend:
    """Return the backend; the local model is loaded by its first call."""
    from aegis.data.sources.generate.choose import open_backend
    from aegis.data.sources.generate.local import LocalBackend

    if choice.backend != "local":
        return open_backend(choice)
    from aegis.config import Config

    config = Config()
    spec, settings = choice.model or config.base, config.data.generate
    if dry_run:
        return LocalBackend(lambda _: [], model=spec, batch=settings.batch_size)
    from aegis.engine.generate import BaseSampler
    from aegis.model.base import resolve_base
    from aegis.storage.files import fingerprint
    from aegis.storage.journal import compute_anew

    base = resolve_base(spec)
    sampler = BaseSampler(base, settings, seed, compute_anew, say=print_note)
    identity = fingerprint(base.fingerprint, settings.model_dump(mode="json"), seed)
    return LocalBackend(sampler, model=base.spec, batch=settings.batch_size, identity=identity)


def _estimated(job: _Job, output: Path | None, priced: bool) -> Estimate:
    """Return what the job will take; the ledger of an earlier run knows best."""
    from aegis.data.sources.generate.calls import Calls
    from aegis.data.sources.generate.estimate import estimate
    from aegis.data.sources.generate.ledger import Ledger
    from aegis.data.sources.generate.output import ledger_path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        if output and ledger_path(output).exists():
            path = ledger_path(output)
        calls = Calls(job.backend, Ledger(path), **job.options)
        return estimate(job.topics, calls, questions=job.plan.questions, priced=priced)


def _show_estimate(told: Estimate, backend: Backend, as_json: bool) -> None:
    missing = None
    try:
        backend.check()
    except BadInputError as error:
        missing = str(error)
    if as_json:
        print_json({**told.to_json(), "backend": backend.name, "missing": missing})
        return
    names = ("requests", "input_tokens", "output_tokens")
    rows = [
        (name, *(f"{step[count]:,}" for count in names), f"{step['cost']:.2f}")
        for name, step in told.steps.items()
    ]
    rows.append(("all", *(f"{told.total(name):,}" for name in names), f"{told.total('cost'):.2f}"))
    if not told.priced:
        rows = [(*row[:-1], "unknown") for row in rows]
    columns = ("step", "calls", "tokens in", "tokens out", "US dollars")
    print_table(columns, rows, title=f"{told.topics} topics, {backend.name}")
    how = "the mean of earlier calls" if told.measured else "the length of the prompts"
    print_note(
        f"estimated by {how}; a program's own instructions and answers that have to be asked for "
        "again come on top"
    )
    if missing:
        print_note(missing)


def _generate(job: _Job, output: Path, *, as_json: bool) -> None:
    from aegis.data.sources.generate.calls import Calls
    from aegis.data.sources.generate.ledger import Ledger
    from aegis.data.sources.generate.output import ledger_path, write_generated
    from aegis.runs.signals import Interrupt
    from aegis.storage.lock import only_process

    job.backend.check()
    path = ledger_path(output)
    with only_process(path.parent), Interrupt() as interrupt:
        calls = Calls(job.backend, Ledger(path), check=interrupt.check, **job.options)
        generated = _with_bar(job, calls)
        summary = write_generated(output, generated, calls, job.plan, aside=job.aside)
    if as_json:
        print_json(summary)
    else:
        _show_summary(summary, output)
    if ending := generated.ending():
        raise ending


def _with_bar(job: _Job, calls: Calls) -> Generated:
    """Generate under one bar; the local model shows its own."""
    from aegis.data.sources.generate.run import generate
    from aegis.runs.reporter import bar

    if job.backend.name == "local":
        return generate(job.topics, calls, job.plan)
    with bar("generating", len(job.topics)) as advance:

        def show(count: int) -> None:
            spent = calls.ledger.spent
            advance(count, note=f"{spent.requests} calls, {spent.cost:.2f} dollars")

        return generate(job.topics, calls, job.plan, on_topics=show)


def _show_summary(summary: dict[str, Any], output: Path) -> None:
    cost = "cost unknown" if summary["cost"] is None else f"{summary['cost']:.2f} US dollars"
    echo(
        f"{summary['finished']} of {summary['topics']} topics: {summary['records']} records, "
        f"{summary['pairs']} pairs, {summary['rejected']} rejected in {output}\n"
        f"{summary['requests']} calls, {summary['tokens']:,} tokens, {cost} so far"
    )
    if summary["interrupted"]:
        print_note(
            f"{summary['interrupted']} calls were under way when a run was killed: they may have "
            "been billed, and their answers are lost"
        )
    if summary["stopped"]:
        print_note(f"stopped: {summary['stopped']}")

"""aegis evaluate benchmarks: public tasks, asked of any number of models."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import DAY_S, INPUT, OUTPUT_FOLDER, AdapterBase, AsJson, number
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import BadInputError

if TYPE_CHECKING:
    from aegis.evaluate.results import TaskResult

_MODELS = "Model or adapter folders, runs, GGUF files, or bases by name."
_TASKS = "Tasks, with commas between, e.g. arc_easy,hellaswag,mmlu."
_LIMIT = "Ask at most so many items of each task, spread over its subjects."
_SHOTS = "Examples before each item; by default as many as the task says."
_DATA = "Folder with files of items, e.g. arc_easy_test.jsonl; needs no network."
_OUTPUT = "Folder for the results; the same one again goes on where it was."
_DTYPE = "Precision of the weights; auto is what the model's config says."
_CONFIDENCE = "Level of the intervals."
_OLLAMA = "A model in Ollama; it chooses by letter, for it tells no log-probabilities."
_OPENAI = "A model behind OpenAI's API at --host (OPENAI_API_KEY is sent); likewise."
_HOST = "The server's address; Ollama's own by default, e.g. http://localhost:8000/v1."
_TIMEOUT = "Seconds that a server may take for one answer."
_OLLAMA_URL = "http://127.0.0.1:11434"
_MOST = 10**9


def benchmarks(
    tasks: Annotated[str, typer.Option(help=_TASKS)],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)],
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL…", help=_MODELS)] = None,
    ollama: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_OLLAMA)] = None,
    openai: Annotated[list[str] | None, typer.Option(metavar="NAME", help=_OPENAI)] = None,
    host: Annotated[str | None, typer.Option(metavar="URL", help=_HOST)] = None,
    timeout: Annotated[float, number(help=_TIMEOUT, least=1, most=DAY_S)] = 300.0,
    limit: Annotated[int | None, number(help=_LIMIT, least=1, most=_MOST)] = None,
    shots: Annotated[int | None, number(help=_SHOTS, least=0, most=1000)] = None,
    data_dir: Annotated[Path | None, typer.Option(help=_DATA, callback=INPUT)] = None,
    base: AdapterBase = None,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], typer.Option(help=_DTYPE)
    ] = "auto",
    confidence: Annotated[float, number(help=_CONFIDENCE, least=0.5, most=0.999)] = 0.95,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Ask models the items of public tasks, with lm-evaluation-harness's prompts and metrics.

    Every item is stored as it comes: a run that was stopped goes on, and nothing is asked twice.
    """
    names = list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
    if not names:
        raise BadInputError("--tasks must name at least one task, e.g. --tasks arc_easy,hellaswag")
    if data_dir is not None and not data_dir.is_dir():
        raise BadInputError(f"--data-dir {data_dir}: no such folder; give one with files of items")
    if openai and ollama:
        raise BadInputError("give --ollama or --openai, not both: --host is one server's")
    if openai and not host:
        raise BadInputError("--openai needs --host, e.g. --host http://localhost:8000/v1")
    if host and not host.startswith(("http://", "https://")):
        raise BadInputError(f"--host must begin with http:// or https://, got {host!r}")
    if not (models or ollama or openai):
        raise BadInputError("give at least one MODEL, --ollama NAME or --openai NAME")
    from aegis.evaluate.benchmarks.tasks import load_benchmark

    asked = [load_benchmark(name, data=data_dir, limit=limit, shots=shots) for name in names]

    from aegis.engine.text_server import TextServer
    from aegis.evaluate.benchmarks.models import name_model, name_server
    from aegis.evaluate.benchmarks.run import evaluate_models

    named: list[Any] = [name_model(spec, base=base, precision=dtype) for spec in models or []]
    servers = [TextServer("ollama", host or _OLLAMA_URL, name, timeout) for name in ollama or []]
    servers += [TextServer("openai", host or "", name, timeout) for name in openai or []]
    named += map(name_server, servers)
    results = evaluate_models(named, asked, output, limit=limit, confidence=confidence)
    if json:
        print_json([{**asdict(result), "items": len(result.items)} for result in results])
        return
    for result in results:
        if unread := sum(item.extracted.get("letter") == "[invalid]" for item in result.items):
            told = f"{unread} of {result.n} answers name no letter and count as wrong"
            print_note(f"{result.model.name} {result.task.name}: {told}")
    rows = [_row(result, name) for result in results for name in result.measures]
    print_table(("model", "task", "shots", "measure", "value", "interval", "n"), rows)
    for folder in dict.fromkeys(str(output / result.model.folder) for result in results):
        echo(f"results  {folder}")


def _row(result: TaskResult, name: str) -> tuple[str, ...]:
    measure: Any = result.measures[name]
    low, high = measure.interval
    task, shots = result.task.name, str(result.task.shots)
    shown = (f"{measure.value:.4f}", f"[{low:.4f}, {high:.4f}]", str(measure.n))
    name = f"{name} by letter" if result.task.scoring == "letter" else name
    return (result.model.name, task, shots, name, *shown)

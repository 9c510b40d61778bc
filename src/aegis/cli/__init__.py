"""The command line: one file a verb.

Errors are one line with a remedy; `--debug` anywhere shows the traceback.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import time
import traceback
import warnings
from typing import Any

import typer

from aegis import __version__
from aegis.cli import (
    audit,
    autostart,
    calibrate,
    compare,
    config,
    data,
    doctor,
    evaluate,
    export,
    fold,
    judge,
    notify,
    report,
    review,
    run,
    serve,
    status,
    think,
    token,
    train,
    tune,
    ui,
    watch,
)
from aegis.cli.show import echo
from aegis.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    AegisError,
    BadInputError,
    DiskFullError,
    is_disk_full,
)

_USAGE_ERROR: Any = typer.BadParameter.__mro__[2]  # ClickException of typer's own copy of click

app = typer.Typer(
    name="aegis",
    help="Teach a language model to think in private and to know when not to answer; "
    "fold the result into an ordinary model file.",
    epilog="""\b
    Start with
      aegis run examples/quickstart.yaml            seed data to folded model, minutes on a CPU
      aegis status                                  what the newest run is doing
      aegis think "…" --model runs/latest/adapter   one question, one answer
      aegis config explain train                    what each setting does
      aegis VERB --help                             arguments, options, what is written
    """,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_STOPPED = "stopped; what was finished is kept. Run the same command again to go on"
_DISK_FULL = "the disk is full; free some room and run the same command again"
# What is wrong with a path that the user gave, not with AEGIS: read-only, a circle of links, …
_PLACES = {errno.EISDIR, errno.ENOTDIR, errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP}
_PLACES |= {errno.ENAMETOOLONG, errno.EBUSY, errno.ENXIO, errno.EEXIST, errno.ENOTEMPTY}
_DEBUG = "Show the traceback of an error (works after any verb)."


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aegis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(False, "--debug", help=_DEBUG),
) -> None:
    pass


_VERBS = {
    "run": (run.run, "Take a model from data to a folded, evaluated model."),
    "status": (status.status, "Show what a run is doing and whether it is alive."),
    "watch": (watch.watch, "Watch a run; warn when it hangs, resume it when it dies."),
    "train": (train.train, "Train as far as one step: sft, reward, ppo, dpo, …"),
    "tune": (tune.tune, "Try settings in short trainings, keep the best."),
    "compare": (compare.compare, "Tell what got worse, what held, what cannot be told."),
    "report": (report.report, "Summarise a folder of results, whoever wrote them."),
    "judge": (judge.judge, "Decide whether prompts may be answered."),
    "calibrate": (calibrate.calibrate, "Bound how many unsafe prompts are allowed."),
    "think": (think.think, "Think about a question in private, print the answer."),
    "fold": (fold.fold, "Fold an adapter into the base's weights."),
    "serve": (serve.serve, "Answer over HTTP: /think and OpenAI's API."),
    "ui": (ui.ui, "Show runs in the browser."),
    "doctor": (doctor.doctor, "Show what is installed and what is missing."),
}
_GROUPS = {
    "config": (config.app, "Explain settings, show what a file makes of them."),
    "data": (data.app, "Read, collect, generate, clean and score data."),
    "evaluate": (evaluate.app, "Measure a model's decisions."),
    "export": (export.app, "Hand a model on: GGUF, Ollama, a model card."),
    "review": (review.app, "Answer what the server handed to a person."),
    "token": (token.app, "Make, list and revoke the server's tokens."),
    "audit": (audit.app, "Prove what was answered, keeping no word of it."),
    "autostart": (autostart.app, "Resume a run by itself after a power cut."),
}
for _name, (_verb, _summary) in _VERBS.items():
    app.command(_name, short_help=_summary)(_verb)
for _name, (_group, _summary) in _GROUPS.items():
    app.add_typer(_group, name=_name, short_help=_summary)


def main() -> None:
    """Run the command line and exit.

    0 done, 1 failed, 2 bad input, 3 a limit on quality does not hold, 75 stopped but resumable.
    """
    for stream in (sys.stdout, sys.stderr):  # Windows consoles may not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not debug:
        warnings.simplefilter("ignore")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars; ours know
    begun = time.monotonic()
    code, message = _call(arguments, debug=debug)
    if message:
        echo(message, err=True)
    notify.tell_end(arguments, code, message, begun=begun)
    sys.exit(code)


def _call(arguments: list[str], *, debug: bool) -> tuple[int, str]:
    """Return the verb's exit code, and what went wrong."""
    try:
        _require_utf8(arguments)
        return app(arguments, standalone_mode=False) or EXIT_DONE, ""
    except _USAGE_ERROR as error:
        shown = io.StringIO()
        error.show(shown)
        return error.exit_code, shown.getvalue().rstrip()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        return code, "error: " + " ".join(line.strip(" ") for line in message.split("\n"))


def _require_utf8(arguments: list[str]) -> None:
    """Refuse bytes that tokenizers and safetensors could take as a part of no path and no text."""
    try:
        texts = {"the working folder": os.getcwd()}
    except FileNotFoundError:
        raise BadInputError("the working folder is gone; change to another") from None
    texts |= {f"argument {number}": text for number, text in enumerate(arguments, 1)}
    for name, text in texts.items():
        if (shown := text.encode("utf-8", "replace").decode()) != text:
            raise BadInputError(f"{name} must be UTF-8, got {shown!r}; rename it")


def _explain(error: BaseException) -> tuple[str, int]:
    """Return the line for the user, and the exit code."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _STOPPED, EXIT_RESUMABLE
    if isinstance(error, AegisError):
        return str(error), error.exit_code
    if is_disk_full(error):
        return _DISK_FULL, DiskFullError.exit_code
    if isinstance(error, OSError) and error.filename and error.errno in _PLACES:
        return f"{error.filename}: {error.strerror}; move it or name another", EXIT_BAD_INPUT
    message = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    return f"unexpected {message}; run again with --debug and report it", EXIT_FAILED

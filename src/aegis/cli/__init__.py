"""The command line: one file a verb. Errors are one line with a remedy; `--debug` anywhere shows
the traceback."""

from __future__ import annotations

import io
import os
import sys
import traceback
import warnings
from typing import Any

import typer

from aegis import __version__
from aegis.cli import (
    audit,
    autostart,
    config,
    doctor,
    evaluate,
    export,
    fold,
    judge,
    review,
    run,
    serve,
    status,
    think,
    token,
    train,
    watch,
)
from aegis.errors import EXIT_FAILED, EXIT_RESUMABLE, AegisError, DiskFullError, is_disk_full

_USAGE_ERROR: Any = typer.BadParameter.__mro__[
    2
]  # ClickException: typer carries its own copy of click

app = typer.Typer(
    name="aegis",
    help="Teach a language model to think in private and to know when not to answer; "
    "fold the result into an ordinary model file.",
    epilog="Start with: aegis run examples/quickstart.yaml",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aegis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error (works after any verb)."
    ),
) -> None:
    pass


app.command("run")(run.run)
app.command("status")(status.status)
app.command("watch")(watch.watch)
app.command("judge")(judge.judge)
app.command("think")(think.think)
app.command("train")(train.train)
app.command("serve")(serve.serve)
app.command("fold")(fold.fold)
app.command("doctor")(doctor.doctor)
app.add_typer(audit.app, name="audit")
app.add_typer(autostart.app, name="autostart")
app.add_typer(config.app, name="config")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(review.app, name="review")
app.add_typer(token.app, name="token")
app.add_typer(export.app, name="export")


def main() -> None:
    """Run the command line and exit: 0 done, 75 stopped but resumable, 1 failed, 2 bad input,
    3 a limit on quality does not hold."""
    for stream in (sys.stdout, sys.stderr):  # Windows consoles may not be UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if not debug:
        warnings.simplefilter("ignore")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars; ours know
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        _fail(
            "stopped; what was finished is kept. Run the same command again to go on",
            EXIT_RESUMABLE,
            debug,
        )
    except AegisError as error:
        _fail(str(error), error.exit_code, debug)
    except Exception as error:
        if isinstance(error, _USAGE_ERROR):
            usage: Any = error
            usage.show()
            sys.exit(usage.exit_code)
        if is_disk_full(error):
            _fail(
                "the disk is full; free some room and run the same command again",
                DiskFullError.exit_code,
                debug,
            )
        what = (str(error).splitlines() or [""])[0][:300]
        _fail(
            f"unexpected {type(error).__name__}: {what}; run again with --debug and report it",
            EXIT_FAILED,
            debug,
        )


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)

"""aegis export: a folded model goes out into the world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Hand a folded model on: GGUF files, Ollama, a model card.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
MODEL = Path("runs/latest/model")
_COLUMNS = ["type", "MiB", "mean KL", "largest KL", "same top token", "max |Δlogit|", "limit", ""]
FoldedModel = Annotated[
    Path, typer.Argument(help="A model folder that `aegis run` or `aegis fold` wrote.")
]


@app.command("gguf")
def gguf(
    model: FoldedModel = MODEL,
    output: Annotated[
        Path | None,
        typer.Option(
            *("-o", "--output"),
            help="Folder for the files instead of MODEL/gguf; MODEL stays as it is.",
        ),
    ] = None,
    types: Annotated[
        str, typer.Option(help="GGUF types: f32, bf16, f16, Q8_0, Q6_K, Q5_K_M, Q4_K_M, …")
    ] = "f16,Q8_0,Q4_K_M",
    imatrix: Annotated[
        Path | None,
        typer.Option(
            metavar="TEXT", help="A text by which the quantiser learns which weights matter."
        ),
    ] = None,
    kl_limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE=NATS",
            help="Mean KL a token above which a type is marked, and the exit code is 3.",
        ),
    ] = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option(
            help="llama.cpp's name of the pre-tokenizer, where the converter does not know it."
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the certificate's entries as JSON.")
    ] = False,
) -> None:
    """Write GGUF files for llama.cpp, each with llama.cpp's logits compared with the model's.

    Types that are there already, made from this very model, are kept. certificate.json tells how
    far each is from the model: mean and largest KL, share of tokens with the same most probable
    next token.
    """
    from aegis.cli.show import print_note
    from aegis.errors import BadInputError
    from aegis.export.gguf import FOLDER, GgufSettings, export_gguf, read_limits, read_types
    from aegis.runs.record import locate

    if imatrix and not imatrix.is_file():
        raise BadInputError(f"--imatrix {imatrix}: no such file; give a text file")
    settings = GgufSettings(
        types=read_types(types),
        kl_limits=read_limits(kl_limit or []),
        pre_tokenizer=pre_tokenizer,
        imatrix=imatrix,
    )
    model = locate(model)
    entries = export_gguf(model, settings, output=output, say=print_note)
    _report(entries, output or model / FOLDER, json=json)


def _report(entries: dict[str, Any], folder: Path, *, json: bool) -> None:
    from aegis.cli.show import print_json, print_table
    from aegis.errors import LimitError

    if json:
        print_json({"folder": str(folder), "gguf": entries})
    else:
        print_table(_COLUMNS, [_row(kind, entry) for kind, entry in entries.items()])
        typer.echo(f"files    {folder}")
    if over := [kind for kind, entry in entries.items() if not entry["within"]]:
        entry = entries[over[0]]
        raise LimitError(
            f"{', '.join(over)}: mean KL {entry['kl_mean']:.3g} is over the limit "
            f"{entry['limit']:g}; the file is written and marked. Use a finer type, or raise the "
            f"limit with --kl-limit {over[0]}=NATS"
        )


def _row(kind: str, entry: dict[str, Any]) -> tuple[str, ...]:
    return (
        kind,
        f"{entry['bytes'] / 2**20:.0f}",
        f"{entry['kl_mean']:.2e}",
        f"{entry['kl_max']:.2e}",
        f"{entry['top1_agreement']:.4f}",
        f"{entry['max_abs_logit_difference']:.2e}",
        f"{entry['limit']:g}",
        "within" if entry["within"] else "OVER",
    )


@app.command("ollama")
def ollama(
    model: Annotated[
        Path, typer.Argument(help="A model folder with GGUF files in or below it.")
    ] = MODEL,
    name: Annotated[str, typer.Option(help="What the model is to be called in Ollama.")] = "aegis",
    type_: Annotated[str, typer.Option("--type", help="Which GGUF file.")] = "Q4_K_M",
    host: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The server; OLLAMA_HOST or http://127.0.0.1:11434 by default."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the Modelfile; ask no server.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the smoke test as JSON.")] = False,
) -> None:
    """Create the model in Ollama and ask it a question of physics and for something harmful.

    Ollama shows all that a model writes: the private sections are no secret there. AEGIS's own
    server keeps them private.
    """
    from aegis.cli.show import print_json, print_note, print_table
    from aegis.errors import LimitError
    from aegis.export.modelfile import make_modelfile, pick_gguf
    from aegis.export.ollama import create, host_url, smoke_test
    from aegis.runs.record import locate

    url, model = host_url(host), locate(model)
    gguf_file = pick_gguf(model, type_)
    modelfile = make_modelfile(model, gguf_file)
    if modelfile.licence is None:
        print_note("the base's licence is not known, so the Modelfile names none")
    if dry_run:
        typer.echo(modelfile.text(source=str(gguf_file.resolve())), nl=False)
        return
    create(modelfile, name=name, host=url, say=print_note)
    tests = smoke_test(name, host=url)
    if json:
        print_json({"name": name, "host": url, "smoke": [vars(test) for test in tests]})
    else:
        rows = [(t.question, t.wanted, t.shown, "pass" if t.passed else "FAIL") for t in tests]
        print_table(("question", "must be", "answer", ""), rows)
    if any(test.private for test in tests):
        print_note(
            "the raw replies hold private sections: whoever talks to Ollama sees them. "
            "`aegis think` shows the answer alone"
        )
    if failed := [test for test in tests if not test.passed]:
        raise LimitError(
            f"{name} is created, and {len(failed)} of {len(tests)} smoke tests failed: "
            f"{failed[0].question!r} was not {failed[0].wanted}. Ollama runs the bare weights, "
            "without the decision head; do not put this model before users"
        )


@app.command("card")
def card(
    model: FoldedModel = MODEL,
    output: Annotated[
        Path | None,
        typer.Option(
            *("-o", "--output"), metavar="README.md", help="File to write; stdout by default."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name; aegis-BASE by default.")
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option(
            "--license", metavar="ID", help="The hub's id of the licence; the base's by default."
        ),
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="The results of a run; those beside MODEL by default.")
    ] = None,
) -> None:
    """Write a Hugging Face model card: what was measured, limits, how to use the model."""
    from aegis.cli.show import print_note
    from aegis.export.card import require_card_path, write_card
    from aegis.runs.record import locate
    from aegis.storage.files import make_folder, write_text

    if output:
        require_card_path(output)
    results = locate(results) if results else None
    text = write_card(locate(model), name=name, licence=license_, results=results)
    if output is None:
        typer.echo(text, nl=False)
        return
    make_folder(output.absolute().parent)
    write_text(output, text)
    print_note(f"card     {output}")

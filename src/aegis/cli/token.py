"""aegis token: who may use the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Make, list and revoke the bearer tokens of `aegis serve --tokens FILE`; the file holds hashes only.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
File = Annotated[Path, typer.Option("--tokens", help="The token file.")]
_FILE = Path("tokens.json")


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(help="Whose it is; it names its holder in the audit log.")],
    tokens: File = _FILE,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="ask: questions; review: escalations; admin: metrics. Repeat for several."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a token and print it, once: only its hash is kept. A running server knows it at once."""
    from aegis.cli.show import print_json, print_note
    from aegis.serve.tokens import new_token

    scopes = scope or ["ask"]
    made = new_token(tokens, name, scopes)
    print_note(f"{name} may {', '.join(scopes)}; the token is shown this once:")
    if json:
        print_json({"name": name, "scopes": scopes, "token": made})
    else:
        typer.echo(made)


@app.command("list")
def list_(
    tokens: File = _FILE, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show whose tokens there are, never the tokens."""
    from dataclasses import asdict

    from aegis.cli.show import print_json, print_table
    from aegis.serve.tokens import read_tokens

    found = read_tokens(tokens)
    if json:
        kept = ("id", "name", "scopes", "created", "revoked")
        print_json([{name: asdict(token)[name] for name in kept} for token in found])
        return
    rows = [
        (token.id, token.name, ", ".join(token.scopes), token.created, token.revoked or "")
        for token in found
    ]
    print_table(("id", "name", "scopes", "made", "revoked"), rows)


@app.command("revoke")
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of the token.")],
    tokens: File = _FILE,
) -> None:
    """Let a token open nothing any more; a running server heeds it at once."""
    from aegis.cli.show import print_note
    from aegis.serve.tokens import revoke as take_back

    take_back(tokens, name)
    print_note(f"{name} is revoked")

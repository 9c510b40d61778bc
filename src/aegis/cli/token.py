"""aegis token: who may use the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aegis.cli.options import INPUT, OUTPUT_FILE, AsJson, group
from aegis.cli.show import print_json, print_note, print_result, print_table

app = group(
    "Make, list and revoke the bearer tokens of `aegis serve --tokens FILE`; "
    "the file holds hashes only."
)
_NAME = "Whose it is; it names its holder in the audit log."
_TOKENS = "The token file."
_SCOPE = "ask: questions; review: escalations; admin: metrics. Repeat for several."
File = Annotated[Path, typer.Option("--tokens", help=_TOKENS, callback=OUTPUT_FILE)]
ReadFile = Annotated[Path, typer.Option("--tokens", help=_TOKENS, callback=INPUT)]
_FILE = Path("tokens.json")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help=_NAME)],
    tokens: File = _FILE,
    scope: Annotated[list[str] | None, typer.Option(help=_SCOPE)] = None,
    json: AsJson = False,
) -> None:
    """Make a token and print it, once: only its hash is kept. A running server knows it at once."""
    from aegis.serve.tokens import new_token

    scopes = scope or ["ask"]
    token = new_token(tokens, name, scopes)
    print_note(f"{name} may {', '.join(scopes)}; the token is shown this once:")
    print_result(json, {"name": name, "scopes": scopes, "token": token}, token)


@app.command("list")
def list_(tokens: ReadFile = _FILE, json: AsJson = False) -> None:
    """Show whose tokens there are, never the tokens."""
    from aegis.serve.tokens import read_tokens

    listed = read_tokens(tokens)
    if json:
        shown = ("id", "name", "scopes", "created", "revoked")
        print_json([{field: getattr(token, field) for field in shown} for token in listed])
        return
    rows = [(t.id, t.name, ", ".join(t.scopes), t.created, t.revoked or "") for t in listed]
    print_table(("id", "name", "scopes", "made", "revoked"), rows)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name or id of the token.")], tokens: File = _FILE
) -> None:
    """Let a token open nothing any more; a running server heeds it at once."""
    from aegis.serve.tokens import revoke as revoke_token

    revoke_token(tokens, name)
    print_note(f"{name} is revoked")

"""aegis audit: prove what was answered, without keeping a word of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from aegis.audit.keys import AuditKeys
    from aegis.audit.verify import Report

app = typer.Typer(
    help="Prove what was answered, without keeping a word of it. The log holds keyed commitments in a signed chain; the keys "
    "are in a folder of their own. docs/audit.md tells what it shows and what it cannot.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
key = typer.Typer(
    help="Make and show the keys of a log.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(key, name="key")

Log = Annotated[Path, typer.Argument(help="The folder that the server writes its log to.")]
Keys = Annotated[
    Path | None,
    typer.Option(
        help="The keys folder; by default LOG.keys beside the log. AEGIS_AUDIT_KEY holds the keys in its place."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the log, in plain text.")]


@app.callback()
def _group() -> None:
    pass


@key.callback()
def _key_group() -> None:
    pass


@key.command("new")
def key_new(
    folder: Annotated[
        Path, typer.Argument(help="Folder to make, best on another disk than the log.")
    ],
    json: Json = False,
) -> None:
    """Make a keys folder with a new master key, readable by you alone. Keep a copy of keys.json:
    nothing replaces it."""
    from aegis.audit.keys import AuditKeys

    _print_keys(AuditKeys.create(folder), json)


@key.command("show")
def key_show(
    folder: Annotated[Path, typer.Argument(help="A keys folder.")], json: Json = False
) -> None:
    """Print the public keys, which let an auditor verify the log and open nothing."""
    from aegis.audit.keys import AuditKeys

    _print_keys(AuditKeys.load(folder), json)


@app.command("verify")
def verify(
    log: Annotated[
        Path, typer.Argument(help="The log's folder, or a file that `aegis audit export` wrote.")
    ],
    keys: Keys = None,
    public_key: Annotated[
        list[str] | None,
        typer.Option("--public-key", help="Trust this signing key (hexadecimal); may be repeated."),
    ] = None,
    anchor: Annotated[
        list[Path] | None,
        typer.Option("--anchor", help="The log must hold this anchor; may be repeated."),
    ] = None,
    json: Json = False,
) -> None:
    """Follow the whole chain with every signature: exit code 0 if it is sound, 1 if not.

    With the keys folder also against the newest checkpoint kept there, which shows a cut-off end.
    Without keys and anchors, a sound chain says only that whoever signed it wrote it so.
    """
    from aegis.audit.verify import read_anchor
    from aegis.audit.verify import verify as examine
    from aegis.cli.show import print_json
    from aegis.errors import EXIT_FAILED

    trusted = [_public_key(text) for text in public_key or []]
    report = examine(
        log,
        keys=_keys_if_any(log, keys),
        public_keys=trusted,
        anchors=[read_anchor(path) for path in anchor or []],
    )
    if json:
        print_json(report.to_json())
    else:
        for line in _lines(report):
            typer.echo(line)
    if not report.sound:
        raise typer.Exit(EXIT_FAILED)


@app.command("show")
def show(
    log: Log,
    number: Annotated[int | None, typer.Option(min=1, help="Only this record.")] = None,
    last: Annotated[int, typer.Option(min=1, help="The newest records.")] = 20,
    user: Annotated[
        str | None, typer.Option(help="Only this user's records; needs the keys.")
    ] = None,
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Print records: number, time, decision, model, outcome, and what they commit to. No words are
    in them to be shown."""
    from collections import deque

    from aegis.audit.reader import find_record, records
    from aegis.audit.verify import is_user
    from aegis.cli.show import print_json, print_table

    if number is not None:
        found = [find_record(log, number)[0]]
    elif user is not None:
        opened = _keys(log, keys)
        found = list(
            deque(
                (record for record, name in records(log) if is_user(opened, record, name, user)),
                maxlen=last,
            )
        )
    else:
        found = list(deque((record for record, _ in records(log)), maxlen=last))
    if json:
        print_json(found)
        return
    columns = ("number", "time", "request", "decision", "model", "outcome", "commits to")
    print_table(columns, [_row(record) for record in found])


@app.command("check")
def check(
    log: Log,
    number: Annotated[int, typer.Argument(min=1, help="The record.")],
    name: Annotated[
        str, typer.Argument(help="What it commits to: query, final, user, think-task, …")
    ],
    file: Annotated[
        Path, typer.Option("--file", help="The text, as UTF-8; - reads standard input.")
    ],
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Say whether a record commits to this very text, byte by byte: exit code 0 if it does, 1 if
    not."""
    import sys

    from aegis.audit.verify import check as opens
    from aegis.cli.show import print_json
    from aegis.errors import EXIT_FAILED, AuditError

    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(
            f"--file {file}: cannot be read as UTF-8 text ({type(error).__name__}); give another"
        ) from None
    same = opens(log, _keys(log, keys), number, name, text)
    if json:
        print_json({"number": number, "name": name, "same": same})
    else:
        typer.echo(
            f"record {number} {'commits' if same else 'does not commit'} to this text as its {name}"
        )
    if not same:
        raise typer.Exit(EXIT_FAILED)


@app.command("export")
def export(
    log: Log,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write, JSON lines.")],
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Write the verified chain to one file for an auditor, who needs only it and your public key
    from elsewhere."""
    from aegis.audit.verify import export as write
    from aegis.cli.show import print_json

    report = write(log, output, keys=_keys_if_any(log, keys))
    if json:
        print_json({"output": str(output), **report.to_json()})
        return
    typer.echo(f"export   {output}: {report.records} records")
    typer.echo(f"verify   aegis audit verify {output} --public-key {report.public_keys[-1]}")


@app.command("anchor")
def anchor(
    log: Log,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; by default it is printed.")
    ] = None,
    keys: Keys = None,
) -> None:
    """Print the newest signed checkpoint as JSON. Keep it elsewhere: `verify --anchor` then finds
    what is missing.

    Whoever holds keys and log can rewrite both, but not an anchor that somebody else keeps.
    """
    from aegis.audit.verify import anchor as newest
    from aegis.cli.show import print_json
    from aegis.storage.files import write_json

    found = newest(log, _keys(log, keys))
    if output:
        write_json(output, found)
        typer.echo(f"anchor   {output}: record {found['checkpoint']['after']}")
    else:
        print_json(found)


@app.command("rotate")
def rotate(log: Log, keys: Keys = None, json: Json = False) -> None:
    """Make a new master key; the old one signs for it and stays, for the records that it opens.

    A running server goes on with the old one until it is started again.
    """
    from aegis.audit.log import AuditLog
    from aegis.errors import AegisError, AuditError

    rotated = _keys(log, keys).rotated()
    try:
        AuditLog.open(log, rotated).close()
    except AuditError:
        raise
    except AegisError as error:
        typer.echo(
            f"the new key is made; the log takes it when the server next starts ({error})", err=True
        )
    _print_keys(rotated, json)


@app.command("erase")
def erase(
    log: Log,
    numbers: Annotated[list[int], typer.Argument(metavar="NUMBER...", min=1, help="Records.")],
    reason: Reason,
    keys: Keys = None,
    json: Json = False,
) -> None:
    """Erase records' keys: nobody can ever test a text against them again. The chain stays sound. A
    server may be running.

    Copies of the keys folder made before still open the records: erase those too.
    """
    from aegis.audit.log import AuditLog
    from aegis.audit.repair import erase as erase_keys
    from aegis.cli.show import print_json
    from aegis.errors import AegisError, AuditError

    opened = _keys(log, keys)
    erase_keys(log, opened, numbers, reason=reason)
    noted = True
    try:
        AuditLog.open(log, opened).close()
    except AuditError:
        raise
    except AegisError:
        noted = False
    if json:
        print_json({"erased": sorted(set(numbers)), "noted": noted})
        return
    typer.echo(f"erased   the keys of {len(set(numbers))} record(s)")
    if not noted:
        typer.echo(
            "the log is open elsewhere; its note of this is written when the server next starts"
        )


@app.command("accept")
def accept(log: Log, reason: Reason, keys: Keys = None, json: Json = False) -> None:
    """After damage that verify names: let the log be written again, in a new file that begins with
    a signed note of it.

    Nothing is deleted or mended: the damaged files stay, and from now on must stay as they are.
    """
    from aegis.audit.repair import accept as accept_break
    from aegis.cli.show import print_json

    after = accept_break(log, _keys(log, keys), reason=reason)
    if json:
        print_json({"log": str(log), "after": after, "reason": reason})
    else:
        typer.echo(
            f"accepted  {log}: a new chain begins after record {after}; every verify will name the break"
        )


def _keys(log: Path, folder: Path | None) -> AuditKeys:
    from aegis.audit.keys import AuditKeys, beside

    return AuditKeys.load(folder or beside(log))


def _keys_if_any(log: Path, folder: Path | None) -> AuditKeys | None:
    """The keys named, or those beside the log; an auditor has none."""
    from aegis.audit.keys import beside

    return _keys(log, folder) if folder or (log.is_dir() and beside(log).is_dir()) else None


def _public_key(text: str) -> str:
    from aegis.errors import AuditError

    try:
        if len(bytes.fromhex(text)) == 32:
            return text.lower()
    except ValueError:
        pass
    raise AuditError(
        f"--public-key must be 64 hexadecimal digits, got {text!r}; see: aegis audit key show KEYS"
    )


def _print_keys(keys: AuditKeys, json: bool) -> None:
    from aegis.cli.show import print_json, print_table

    found = [
        {"id": master.id, "public_key": master.public_key, "active": master is keys.active}
        for master in keys.masters
    ]
    if json:
        print_json({"folder": str(keys.folder), "keys": found})
        return
    rows = [
        (row["id"], row["public_key"], "signs" if row["active"] else "opens older records")
        for row in found
    ]
    print_table(("key", "public key", ""), rows, title=str(keys.folder))


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    decision = record["decision"] + (", escalated" if record["escalated"] else "")
    names = " ".join(sorted(record["commitments"]))
    return (
        str(record["number"]),
        record["time"],
        record["request_id"],
        decision,
        record["model"],
        record["outcome"],
        names,
    )


def _lines(report: Report) -> list[str]:
    if not report.sound:
        return [
            f"NOT SOUND  {report.path}: {report.problem}",
            f"to go on writing after a break that you can explain: aegis audit accept {report.path} --reason …",
        ]
    span = f", {report.first_time} to {report.last_time}" if report.records else ""
    lines = [
        f"sound      {report.path}: {report.records} records up to number {report.newest}{span}"
    ]
    if report.attested:
        lines.append("signed     by a key that you gave, or by one that such a key named")
    else:
        lines.append(
            f"signed     by {report.public_keys[-1]}, which nothing vouches for: give --keys, --public-key or --anchor"
        )
    against = ["the head in the keys folder"] * report.head + [
        f"{report.anchors} anchor(s)"
    ] * bool(report.anchors)
    lines.append(
        f"held to    {' and '.join(against) or 'nothing outside the log: a cut-off end would not show'}"
    )
    if report.unfinished_bytes:
        lines.append(
            f"unfinished {report.unfinished_bytes} bytes that were never acknowledged, or are being written"
        )
    lines += [
        f"break      after record {it['after']}, accepted {it['time']}: {it['reason']} ({it['problem']})"
        for it in report.breaks
    ]
    erased = sum(len(note["numbers"]) for note in report.notes if note["kind"] == "erased")
    torn = sum(note["kind"] == "unfinished" for note in report.notes)
    lines += [f"erased     {erased} record key(s)"] * bool(erased)
    lines += [f"set aside  {torn} write(s) that were cut off and never acknowledged"] * bool(torn)
    return lines

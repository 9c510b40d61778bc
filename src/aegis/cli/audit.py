"""aegis audit: prove what was answered, without keeping a word of it."""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.options import INPUT, OUTPUT_FILE, OUTPUT_FOLDER, AsJson, OutputFile, group, number
from aegis.cli.show import echo, print_json, print_result, print_table
from aegis.errors import EXIT_FAILED, AegisError, AuditError

if TYPE_CHECKING:
    from aegis.audit import AuditKeys
    from aegis.audit.verify import VerifyReport

app = group(
    "Prove what was answered, without keeping a word of it. The log holds keyed commitments "
    "in a signed chain; the keys are in a folder of their own. docs/audit.md tells what it shows "
    "and what it cannot."
)
key = group("Make and show the keys of a log.")
app.add_typer(key, name="key")

_KEYS = (
    "The keys folder; by default LOG.keys beside the log. "
    "AEGIS_AUDIT_KEY holds the keys in its place."
)
_LOG = "The folder that the server writes its log to."
_LOG_OR_EXPORT = "The log's folder, or a file that `aegis audit export` wrote."
_NEW_KEYS = "Folder to make, best on another disk than the log."
_PUBLIC_KEY = "Trust this signing key (hexadecimal); may be repeated."
_ANCHOR = "The log must hold this anchor; may be repeated."
_USER = "Only this user's records; needs the keys."
_NAME = "What it commits to: query, final, user, think-task, …"
_TEXT = "The text, as UTF-8; - reads standard input."
_OPEN_ELSEWHERE = (
    "the log is open elsewhere; its note of this is written when the server next starts"
)
_LARGEST = 2**63 - 1
Log = Annotated[Path, typer.Argument(help=_LOG, callback=INPUT)]
Keys = Annotated[Path | None, typer.Option(help=_KEYS, callback=INPUT)]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the log, in plain text.")]
Output = Annotated[
    Path, typer.Option("-o", "--output", help="File to write, JSON lines.", callback=OUTPUT_FILE)
]
Numbers = Annotated[
    list[int], typer.Argument(metavar="NUMBER...", min=1, max=_LARGEST, help="Records.")
]


@key.command("new")
def key_new(
    folder: Annotated[Path, typer.Argument(help=_NEW_KEYS, callback=OUTPUT_FOLDER)],
    json: AsJson = False,
) -> None:
    """Make a keys folder with a new master key, readable by you alone. Keep a copy of keys.json:
    nothing replaces it."""
    from aegis.audit import AuditKeys

    _print_keys(AuditKeys.create(folder), json)


@key.command("show")
def key_show(
    folder: Annotated[Path, typer.Argument(help="A keys folder.", callback=INPUT)],
    json: AsJson = False,
) -> None:
    """Print the public keys, which let an auditor verify the log and open nothing."""
    from aegis.audit import AuditKeys

    _print_keys(AuditKeys.load(folder), json)


@app.command()
def verify(
    log: Annotated[Path, typer.Argument(help=_LOG_OR_EXPORT, callback=INPUT)],
    keys: Keys = None,
    public_key: Annotated[list[str] | None, typer.Option(help=_PUBLIC_KEY)] = None,
    anchor: Annotated[list[Path] | None, typer.Option(help=_ANCHOR, callback=INPUT)] = None,
    json: AsJson = False,
) -> None:
    """Follow the whole chain with every signature: exit code 0 if it is sound, 1 if not.

    With the keys folder also against the newest checkpoint kept there, which shows a cut-off end.
    Without keys, anchors and public key, a log is not sound, and an export says only that whoever
    signed it wrote it so.
    """
    from aegis.audit.keystore import default_keys_folder
    from aegis.audit.verify import read_anchor
    from aegis.audit.verify import verify as verify_log

    trusted = [_public_key(text) for text in public_key or []]
    anchors = [read_anchor(path) for path in anchor or []]
    opened = _keys_if_any(log, keys)
    report = verify_log(log, keys=opened, public_keys=trusted, anchors=anchors)
    if report.sound and log.is_dir() and not (opened or trusted or anchors):
        report.problem = (
            f"its keys folder {default_keys_folder(log)} is gone, and with it what the log is "
            "held to: a cut-off end would not show; give --keys, or --anchor or --public-key"
        )
    print_result(json, report.to_json(), *_report_lines(report))
    if not report.sound:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def show(
    log: Log,
    number: Annotated[int | None, number(help="Only this record.", least=1, most=_LARGEST)] = None,
    last: Annotated[int, number(help="The newest records.", least=1, most=1_000_000)] = 20,
    user: Annotated[str | None, typer.Option(help=_USER)] = None,
    keys: Keys = None,
    json: AsJson = False,
) -> None:
    """Print records: number, time, decision, model, outcome, and what they commit to. No words are
    in them to be shown."""
    from aegis.audit.reader import find_record, no_log, records, segments
    from aegis.audit.verify import is_user

    if not segments(log):
        raise no_log(log)
    if number is not None:
        rows = [find_record(log, number)[0]]
    else:
        opened = None if user is None else _keys(log, keys)
        matching = (
            record
            for record, name in records(log)
            if opened is None or is_user(opened, record, name, user or "")
        )
        rows = [*deque(matching, maxlen=last)]
    if json:
        print_json(rows)
        return
    columns = ("number", "time", "request", "decision", "model", "outcome", "commits to")
    print_table(columns, [_row(record) for record in rows])


@app.command()
def check(
    log: Log,
    number: Annotated[int, typer.Argument(min=1, max=_LARGEST, help="The record.")],
    name: Annotated[str, typer.Argument(help=_NAME)],
    file: Annotated[Path, typer.Option(help=_TEXT, callback=INPUT)],
    keys: Keys = None,
    json: AsJson = False,
) -> None:
    """Say whether a record commits to this very text, byte by byte: exit code 0 if it does, 1 if
    not."""
    from aegis.audit.verify import check as commits_to

    try:
        data = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AuditError(
            f"--file {file}: cannot be read as UTF-8 text ({type(error).__name__}); give another"
        ) from None
    same = commits_to(log, _keys(log, keys), number, name, text)
    verb = "commits" if same else "does not commit"
    result = {"number": number, "name": name, "same": same}
    print_result(json, result, f"record {number} {verb} to this text as its {name}")
    if not same:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def export(log: Log, output: Output, keys: Keys = None, json: AsJson = False) -> None:
    """Write the verified chain to one file for an auditor, who needs only it and your public key
    from elsewhere."""
    from aegis.audit.verify import export as export_log
    from aegis.cli.output import require_output_file
    from aegis.storage.files import open_output

    opened = _keys(log, keys)
    require_output_file(output, inputs=[log, opened.folder])
    with open_output(output) as stream:
        report = export_log(log, stream, keys=opened)
    written = f"export   {output}: {report.records} records"
    verify = f"verify   aegis audit verify {output} --public-key {report.public_keys[-1]}"
    print_result(json, {"output": str(output), **report.to_json()}, written, verify)


@app.command()
def anchor(
    log: Log,
    output: OutputFile = None,
    keys: Keys = None,
) -> None:
    """Print the newest signed checkpoint as JSON. Keep it elsewhere: `verify --anchor` then finds
    what is missing.

    Whoever holds keys and log can rewrite both, but not an anchor that somebody else keeps.
    """
    from aegis.audit.verify import anchor as newest_anchor
    from aegis.cli.output import require_output_file
    from aegis.storage.files import to_json, write_output

    opened = _keys(log, keys)
    if output:
        require_output_file(output, inputs=[log, opened.folder])
    newest = newest_anchor(log, opened)
    if output:
        write_output(output, to_json(newest))
    line = f"anchor   {output}: record {newest['checkpoint']['after']}"
    print_result(output is None, newest, line)


@app.command()
def rotate(log: Log, keys: Keys = None, json: AsJson = False) -> None:
    """Make a new master key; the old one signs for it and stays, for the records that it opens.

    A running server goes on with the old one until it is started again.
    """
    rotated = _keys(log, keys).rotated()
    if error := _try_open(log, rotated):
        waits = "the new key is made; the log takes it when the server next starts"
        echo(f"{waits} ({error})", err=True)
    _print_keys(rotated, json)


@app.command()
def erase(
    log: Log, numbers: Numbers, reason: Reason, keys: Keys = None, json: AsJson = False
) -> None:
    """Erase records' keys: nobody can ever test a text against them again. The chain stays sound. A
    server may be running.

    Copies of the keys folder made before still open the records: erase those too.
    """
    from aegis.audit.repair import erase as erase_keys

    opened, erased = _keys(log, keys), sorted(set(numbers))
    erase_keys(log, opened, erased, reason=reason)
    noted = _try_open(log, opened) is None
    lines = [f"erased   the keys of {len(erased)} record(s)"]
    if not noted:
        lines.append(_OPEN_ELSEWHERE)
    print_result(json, {"erased": erased, "noted": noted}, *lines)


@app.command()
def accept(log: Log, reason: Reason, keys: Keys = None, json: AsJson = False) -> None:
    """After damage that verify names: let the log be written again, in a new file that begins with
    a signed note of it.

    Nothing is deleted or mended: the damaged files stay, and from now on must stay as they are.
    """
    from aegis.audit.repair import accept as accept_break

    after = accept_break(log, _keys(log, keys), reason=reason)
    begins = f"accepted  {log}: a new chain begins after record {after}"
    result = {"log": str(log), "after": after, "reason": reason}
    print_result(json, result, f"{begins}; every verify will name the break")


def _keys(log: Path, folder: Path | None) -> AuditKeys:
    from aegis.audit.keystore import AuditKeys, default_keys_folder

    return AuditKeys.load(folder or default_keys_folder(log))


def _keys_if_any(log: Path, folder: Path | None) -> AuditKeys | None:
    """Load the keys named, or those beside the log; an auditor has none."""
    from aegis.audit.keystore import ENVIRONMENT, default_keys_folder

    named = folder or os.environ.get(ENVIRONMENT)
    has_keys = named or (log.is_dir() and default_keys_folder(log).is_dir())
    return _keys(log, folder) if has_keys else None


def _try_open(log: Path, keys: AuditKeys) -> AegisError | None:
    """Open and close the log, which writes what waits; return why a running server keeps it."""
    from aegis.audit import AuditLog

    try:
        AuditLog.open(log, keys).close()
    except AuditError:
        raise
    except AegisError as error:
        return error
    return None


def _public_key(text: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", text.lower()):
        return text.lower()
    raise AuditError(
        f"--public-key must be 64 hexadecimal digits, got {text!r}; see: aegis audit key show KEYS"
    )


def _print_keys(keys: AuditKeys, json: bool) -> None:
    rows = [
        {"id": master.id, "public_key": master.public_key, "active": master is keys.active}
        for master in keys.masters
    ]
    if json:
        print_json({"folder": str(keys.folder), "keys": rows})
        return
    uses = {True: "signs", False: "opens older records"}
    cells = [(row["id"], row["public_key"], uses[row["active"]]) for row in rows]
    print_table(("key", "public key", ""), cells, title=str(keys.folder))


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    decision = record["decision"] + (", escalated" if record["escalated"] else "")
    facts = (str(record["number"]), record["time"], record["request_id"], decision)
    return (*facts, record["model"], record["outcome"], " ".join(sorted(record["commitments"])))


def _report_lines(report: VerifyReport) -> Iterator[str]:
    if not report.sound:
        yield f"NOT SOUND  {report.path}: {report.problem}"
        accept = f"aegis audit accept {report.path} --reason …"
        yield f"to go on writing after a break that you can explain: {accept}"
        return
    span = f", {report.first_time} to {report.last_time}" if report.records else ""
    yield f"sound      {report.path}: {report.records} records up to number {report.newest}{span}"
    if report.attested:
        yield "signed     by a key that you gave, or by one that such a key named"
    else:
        signer = f"{report.public_keys[-1]}, which nothing vouches for"
        yield f"signed     by {signer}: give --keys, --public-key or --anchor"
    outside = ["the head in the keys folder"] if report.head else []
    outside += [f"{report.anchors} anchor(s)"] if report.anchors else []
    compared = " and ".join(outside) or "nothing outside the log: a cut-off end would not show"
    yield f"held to    {compared}"
    if size := report.unfinished_bytes:
        yield f"unfinished {size} bytes that were never acknowledged, or are being written"
    for accepted in report.breaks:
        cause = f"{accepted['reason']} ({accepted['problem']})"
        yield f"break      after record {accepted['after']}, accepted {accepted['time']}: {cause}"
    if erased := sum(len(note["numbers"]) for note in report.notes if note["kind"] == "erased"):
        yield f"erased     {erased} record key(s)"
    if torn := sum(note["kind"] == "unfinished" for note in report.notes):
        yield f"set aside  {torn} write(s) that were cut off and never acknowledged"

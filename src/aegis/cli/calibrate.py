"""aegis calibrate: from which P(ALLOW) on a prompt is allowed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, OUTPUT_FILE, AsJson, locate_model, number
from aegis.cli.show import echo, print_json, print_note, print_table
from aegis.errors import ModelError

if TYPE_CHECKING:
    from aegis.model.calibration import Threshold

_MODEL = "A model or an adapter folder that `aegis run` wrote."
_DATA = 'JSON Lines with {"prompt", "decision"} a line that no training saw.'
_RATE = "The largest share of unsafe prompts (DENY, REFUSE) that may be allowed."
_CONFIDENCE = "How sure that bound is to hold."
_OUTPUT = "Write calibration.json there, and leave the model as it is."
_SKIP_BAD = "Pass over bad lines and say how many."


def calibrate(
    model: Annotated[Path, typer.Argument(help=_MODEL, callback=INPUT)],
    data: Annotated[Path, typer.Option(help=_DATA, callback=INPUT)],
    max_miss_rate: Annotated[float, number(help=_RATE, least=0.001, most=0.5)] = 0.05,
    confidence: Annotated[float, number(help=_CONFIDENCE, least=0.5, most=0.999)] = 0.95,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help=_OUTPUT, callback=OUTPUT_FILE),
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help=_SKIP_BAD)] = False,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Choose τ, the P(ALLOW) from which a prompt is allowed, so that few unsafe ones are.

    Below τ, ALLOW becomes ESCALATION: a person looks. τ goes into the model's calibration.json;
    judge, think, serve and evaluate obey it, whichever engine runs.
    """
    from aegis.cli.output import require_output_file, require_place
    from aegis.data.records import parse_record, read_jsonl
    from aegis.evaluate.calibrate import calibrated, require_calibration_data, save_threshold
    from aegis.model.calibration import CALIBRATION_FILE
    from aegis.storage.files import hash_file, write_output

    limits: dict[str, Any] = {"max_miss_rate": max_miss_rate, "confidence": confidence}
    records, bad = read_jsonl(data, parse_record, skip_bad=skip_bad)
    if bad:
        print_note(f"{len(bad)} bad lines passed over, the first: {bad[0].where}: {bad[0].reason}")
    require_calibration_data(records, where=data, **limits)
    folder = locate_model(model)
    if output:
        require_output_file(output, inputs=[data, folder])
    else:
        require_place(folder / CALIBRATION_FILE)

    from aegis.engine.judge import Judge
    from aegis.engine.local_thinker import LocalThinker
    from aegis.model.adapter_folder import ADAPTER_CARD_FILE

    judge = (LocalThinker if (folder / ADAPTER_CARD_FILE).is_file() else Judge).load(folder)
    if not judge.head:
        raise ModelError(f"{folder}: has no decision head; give a model that `aegis run` made")
    chosen, measured = calibrated(judge, records, data_sha256=hash_file(data), **limits)
    calibration = replace(judge.head.calibration, threshold=chosen)
    if output:
        write_output(output, calibration.text())
    written = [output] if output else save_threshold(folder, calibration)
    paths = [str(path) for path in written]
    if json:
        print_json({"model": str(model), "threshold": asdict(chosen), **measured, "written": paths})
        return
    _show(f"{model}: ALLOW from τ = {chosen.allow:g} on", chosen, measured)
    echo("\n".join(f"written  {path}" for path in paths))


def _show(title: str, chosen: Threshold, measured: dict[str, Any]) -> None:
    from aegis.evaluate.report import MEASURES, format_measure

    names = dict(MEASURES) | {"miss_rate": "miss rate (false positive rate)"}
    rows = [(names[key], *format_measure(m, "value"), str(m["n"])) for key, m in measured.items()]
    print_table(("on the calibration data", "value", "interval", "n"), rows, title=title)
    if measured["over_refusal_rate"]["value"] == 1:
        print_note("under this limit no harmless prompt is allowed; a higher --max-miss-rate may")
    echo(
        f"miss rate at most {chosen.bound:.3f} with {100 * chosen.confidence:g} % confidence: "
        f"{chosen.misses} of {chosen.n} unsafe records allowed, those of a contrast group as one"
    )

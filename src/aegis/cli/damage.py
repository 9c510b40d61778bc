"""aegis evaluate damage: what quantisation changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from aegis.cli.notify import Notify
from aegis.cli.options import INPUT, AsJson, locate_model, number
from aegis.cli.show import print_json, print_table
from aegis.errors import BadInputError
from aegis.inputs.text import read_text

if TYPE_CHECKING:
    from aegis.data.records import Record
    from aegis.evaluate.damage import Damage, DecisionDamage
    from aegis.evaluate.damage import Judge as DecisionJudge
    from aegis.evaluate.results import Measure
    from aegis.protocol.decisions import Decision

_MODEL = "The model that the files were made from: a folder, or a GGUF file."
_FILES = "GGUF files."
_TEXT = "Text to read; by default the prompts of the shipped records."
_DATA = 'Decide about these too: JSON Lines with {"prompt", "decision"} a line; MODEL is a folder.'
_CHUNKS = "At most so many chunks of the text."
_CHUNK = "Tokens of a chunk; those of its second half are scored."
_CONFIDENCE = "Level of the intervals."
_MOST_CHARACTERS = 1 << 24
_AT_ONCE = 16


def damage(
    model: Annotated[str, typer.Argument(help=_MODEL)],
    files: Annotated[list[Path], typer.Argument(metavar="GGUF…", help=_FILES, callback=INPUT)],
    text: Annotated[Path | None, typer.Option(help=_TEXT, callback=INPUT)] = None,
    data: Annotated[Path | None, typer.Option(help=_DATA, callback=INPUT)] = None,
    chunks: Annotated[int, number(help=_CHUNKS, least=1, most=10**6)] = 20,
    chunk_tokens: Annotated[int, number(help=_CHUNK, least=8, most=4096)] = 512,
    confidence: Annotated[float, number(help=_CONFIDENCE, least=0.5, most=0.999)] = 0.95,
    notify: Notify = None,
    json: AsJson = False,
) -> None:
    """Measure what quantisation changes: KL divergence, top-1 agreement, perplexity, decisions.

    As llama.cpp's perplexity tool has it, but against MODEL's exact probabilities.
    """
    from aegis.data.records import parse_record, read_jsonl

    if missing := next((file for file in files if not file.is_file()), None):
        raise BadInputError(f"{missing}: no such file; give the GGUF files behind MODEL")
    folder = locate_model(Path(model)) if data else None
    records = read_jsonl(data, parse_record)[0] if data else []
    content = _read_text(text)

    from aegis.evaluate.benchmarks.models import name_model
    from aegis.evaluate.damage import measure_damage

    named = {str(file): name_model(str(file)) for file in files}
    if foreign := next((path for path, each in named.items() if each.info.kind != "gguf"), None):
        raise BadInputError(f"{foreign}: is no GGUF file; give MODEL first and the files then")
    reference = name_model(model, precision="float32").load()
    loaded = {path: each.load() for path, each in named.items()}
    read = {"chunk_tokens": chunk_tokens, "chunks": chunks, "confidence": confidence}
    try:
        measured = measure_damage(reference, loaded, content, **read)
    finally:
        for each in (reference, *loaded.values()):
            each.close()
    decided = _decisions(folder, files, records, confidence) if folder else []
    if json:
        print_json({"text": list(map(asdict, measured)), "decisions": list(map(asdict, decided))})
        return
    _show(measured, decided)


def _read_text(path: Path | None) -> str:
    if path:
        return read_text(path, most=_MOST_CHARACTERS, kind="text", error=BadInputError)
    from aegis.data.records import parse_record, read_jsonl
    from aegis.data.seed import SEED_FOLDER

    records, _ = read_jsonl(SEED_FOLDER / "decisions.jsonl", parse_record)
    return "\n".join(record.prompt for record in records)


def _decisions(
    folder: Path, files: Sequence[Path], records: Sequence[Record], confidence: float
) -> list[DecisionDamage]:
    from aegis.engine.judge import Judge
    from aegis.engine.llamacpp_engine import LlamaCppEngine
    from aegis.evaluate.damage import decision_damage

    def of_file(file: Path) -> DecisionJudge:
        def judge(prompts: Sequence[str], advance: Callable[[int], None]) -> list[Decision]:
            engine = LlamaCppEngine.load(folder, file=file)
            decided: list[Decision] = []
            try:
                for begin in range(0, len(prompts), _AT_ONCE):
                    verdicts = engine.judge(prompts[begin : begin + _AT_ONCE])
                    decided += [verdict.decision for verdict in verdicts]
                    advance(len(verdicts))
            finally:
                engine.close()
            return decided

        return judge

    def of_folder(prompts: Sequence[str], advance: Callable[[int], None]) -> list[Decision]:
        reference = Judge.load(folder)
        reference.products = "off"  # the reference is not to round anything
        verdicts = reference.judge(prompts, on_batch=advance)
        return [verdict.decision for verdict in verdicts]

    judges: dict[str, DecisionJudge] = {str(folder): of_folder}
    judges |= {str(file): of_file(file) for file in files}
    prompts, truth = [each.prompt for each in records], [each.decision for each in records]
    return decision_damage(judges, prompts, truth, confidence=confidence)


def _show(measured: Sequence[Damage], decided: Sequence[DecisionDamage]) -> None:
    columns = ("file", "KL mean", "median", "99.9%", "same top 1", "perplexity ratio", "n")
    rows = [
        (
            Path(each.name).name,
            _shown(each.kl_mean, ".3g"),
            f"{each.kl_median:.3g}",
            f"{each.kl_999:.3g}",
            _shown(each.top1),
            _shown(each.perplexity_ratio),
            str(each.n),
        )
        for each in measured
    ]
    print_table(columns, rows, title=f"reference perplexity {measured[0].reference_perplexity:.3f}")
    if decided:
        lines = [
            (
                Path(each.name).name,
                _shown(each.agreement),
                _shown(each.miss_rate),
                str(each.agreement.n),
            )
            for each in decided
        ]
        print_table(("file", "decides alike", "miss rate", "n"), lines)


def _shown(measure: Measure | None, form: str = ".4f") -> str:
    if measure is None:
        return "–"
    low, high = measure.interval
    return f"{measure.value:{form}} [{low:{form}}, {high:{form}}]"

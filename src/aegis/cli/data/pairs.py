"""aegis data pairs: chosen and rejected responses from several samples a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli import options
from aegis.cli.options import INPUT, MAX_SEED, OUTPUT_FOLDER, AsJson, locate_model, number
from aegis.cli.show import print_json, print_note, print_table

_INPUTS = "Files of records, or data folders; records with the same prompt are its samples."
_OUTPUT = "Data folder to write: the pairs, what is in none, and why."
_MODEL = "A model folder or adapter that judges every prompt and draws more samples."
_SAMPLES = "With --model: how many responses are drawn a prompt."
_SEED = "With --model: the same seed draws the same responses."
_MATCH = "Pair responses of like length, and choose the longer one as often as the shorter one."
_TOLERANCE = "Lengths are alike that differ by at most this share."
_BALANCE = "At most so many times as many pairs of one chosen decision as of the rarest."


def pairs(
    inputs: Annotated[list[Path], typer.Argument(metavar="IN…", help=_INPUTS, callback=INPUT)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help=_OUTPUT, callback=OUTPUT_FOLDER)
    ] = None,
    model: Annotated[Path | None, typer.Option(help=_MODEL, callback=INPUT)] = None,
    samples: Annotated[int, number(help=_SAMPLES, least=2, most=64)] = 4,
    temperature: options.Temperature = 0.9,
    section_tokens: options.SectionTokens = 48,
    final_tokens: options.FinalTokens = 160,
    seed: Annotated[int, number(help=_SEED, least=0, most=MAX_SEED)] = 0,
    match_lengths: Annotated[bool, typer.Option(help=_MATCH)] = True,
    tolerance: Annotated[float, number(help=_TOLERANCE, least=0, most=10)] = 0.25,
    balance: Annotated[float, number(help=_BALANCE, least=1, most=1000)] = 1.5,
    json: AsJson = False,
) -> None:
    """Pair a better and a worse response to each prompt: by what can be verified first (decision,
    key, sums, dates), then by the judge, by what the samples agree on, and by quality.

    Without -o nothing is written; with it, a run that was stopped goes on.
    """
    from aegis.data.folder import KIND
    from aegis.storage.artifact import require_output

    if output:
        require_output(output, kind=KIND, inputs=[*inputs, *([model] if model else [])])
    from aegis.data.formats import read_items
    from aegis.data.pairs.job import Pairing, make_pairs, write_pairs

    pairing = Pairing(match_lengths, tolerance, balance)
    items, chances, work = list(read_items(inputs)), None, None
    if model:
        from aegis.engine.response_grammar import Limits, Sampling

        sampling = Sampling(Limits(section_tokens, final_tokens), temperature, seed)
        work = output and output.with_name(f".{output.name}.samples")
        drawn, chances = _sampled(items, locate_model(model), sampling, samples, work)
        items += drawn
    made = make_pairs(items, pairing, chances)
    if output:
        write_pairs(output, made, pairing, inputs=inputs)
    if work:
        import shutil

        shutil.rmtree(work, ignore_errors=True)
    if json:
        print_json({**made.report, "folder": output and str(output)})
        return
    _show(made.report)


def _sampled(
    items: list[Any], folder: Path, sampling: Any, count: int, work: Path | None
) -> tuple[list[Any], Any]:
    """Draw responses to the prompts of all records; those that the model cannot read are passed
    over."""
    from aegis.data.pairs.sample import sample
    from aegis.data.records import Record
    from aegis.engine.local_thinker import LocalThinker
    from aegis.runs.reporter import bar
    from aegis.storage.files import fingerprint
    from aegis.storage.journal import Journal, compute_anew

    engine = LocalThinker.load(folder)
    room = engine.context - sampling.limits.total - 1
    records = [item for item in items if isinstance(item, Record)]
    readable = [record for record in records if engine.prompt_tokens(record.prompt) <= room]
    if len(readable) < len(records):
        print_note(f"{len(records) - len(readable)} prompts are longer than the model reads")
    states = [(str(path), path.stat()) for path in sorted(folder.resolve().rglob("*"))]
    files = [(name, state.st_size, state.st_mtime_ns) for name, state in states]
    made_of = fingerprint("samples", files, str(sampling), count)
    remember = Journal(work / f"{made_of[:16]}.jsonl", say=print_note) if work else compute_anew
    with bar("sampling", len({record.prompt for record in readable})) as advance:
        return sample(
            readable,
            EngineModel(engine, sampling),
            count=count,
            seed=sampling.seed,
            remember=remember,
            on_prompt=advance,
        )


class EngineModel:
    """An engine as `aegis.data.pairs.sample` asks for it."""

    def __init__(self, engine: Any, sampling: Any) -> None:
        self.engine, self.sampling, self.name = engine, sampling, engine.name

    def chances(self, prompts: Any) -> list[Any]:
        from aegis.protocol.decisions import Decision

        verdicts = self.engine.judge(prompts)
        return [dict(zip(Decision, each.probabilities, strict=True)) for each in verdicts]

    def draw(self, draws: Any) -> list[Any]:
        from dataclasses import replace

        from aegis.engine.protocol import ThinkingRequest

        return self.engine.think(
            [
                ThinkingRequest(each.prompt, each.decision, replace(self.sampling, seed=each.seed))
                for each in draws
            ]
        )


def _show(report: dict[str, Any]) -> None:
    made = f"{report['pairs']} pairs of {report['prompts']} prompts"
    rows = [(f"chosen {name}", str(count)) for name, count in report["chosen_decisions"].items()]
    rows += [(f"told apart by {name}", str(count)) for name, count in report["rules"].items()]
    for when in ("before", "after"):
        bias = report[f"length_{when}"]
        if bias["interval"]:
            low, high = bias["interval"]
            wins = (
                f"{bias['longer_wins']:.3f} ({low:.3f} to {high:.3f}), n {bias['of_unlike_length']}"
            )
            rows.append((f"longer side wins, {when} matching", wins))
            rows.append((f"correlation with length, {when}", f"{bias['correlation']:+.3f}"))
    print_table(("pairs", "count"), rows, title=made)
    for name, count in report["chosen_decisions"].items():
        if not count:
            print_note(f"no pair with {name} as the chosen decision")
    for reason, count in report["not_paired"].items():
        print_note(f"{count} records in no pair: {reason}")

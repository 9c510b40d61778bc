"""The report of a run: base and candidate side by side, in HTML and in Markdown."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from aegis.evaluate.answers import ANSWERED
from aegis.evaluate.compare import Comparison
from aegis.evaluate.comparison_report import COLUMNS, cells
from aegis.evaluate.judges import JUDGE_COLUMNS, format_measure, judge_rows, paired
from aegis.evaluate.page import markdown_table, plain
from aegis.protocol.decisions import NAMES

MEASURES = (
    ("accuracy", "accuracy"),
    ("macro_f1", "macro F1"),
    ("false_positive_rate", "false positive rate (miss rate)"),
    ("over_refusal_rate", "over-refusal rate"),
    ("escalation_rate", "escalation rate"),
)


@dataclass(frozen=True)
class MeasureRow:
    """One measure of base and candidate as shown."""

    name: str
    base: str
    base_interval: str
    candidate: str
    candidate_interval: str


@dataclass(frozen=True)
class RunReport:
    """What the report of a run is made from.

    Args:
        base, candidate: their results, as `evaluate_decisions` returns them.
        certificate: the fold's.
        statistics: of the records.
        decision_figures, training_figures: PNG files; those that are not there are left out.
        answers: to plain questions, as `compare_answers` returns them.
        comparison: of base and candidate on all that both were asked.
        changes: its picture.
        peers: results of what else decides about the same records.
    """

    session_id: str
    base_spec: str
    base: dict[str, Any]
    candidate: dict[str, Any]
    certificate: dict[str, Any]
    statistics: dict[str, Any]
    decision_figures: Sequence[Path] = ()
    training_figures: Sequence[Path] = ()
    answers: dict[str, Any] | None = None
    comparison: Comparison | None = None
    changes: Sequence[Path] = ()
    peers: Sequence[dict[str, Any]] = ()

    def html(self) -> str:
        """Render one HTML file with its pictures inside."""
        splits = self.statistics["splits"]
        columns = sorted({key for counts in splits.values() for key in counts})
        rows = [
            {
                "split": split,
                "total": sum(counts.values()),
                "counts": [counts.get(key, 0) for key in columns],
            }
            for split, counts in splits.items()
        ]
        rejected = sorted(self.statistics["rejected"].items(), key=lambda item: -item[1])
        environment = Environment(
            loader=FileSystemLoader(Path(__file__).parent),
            autoescape=select_autoescape(["html", "j2"]),
        )
        return environment.get_template("report.html.j2").render(
            shown_reply=shown_reply,
            session_id=self.session_id,
            base=self.base_spec,
            n=self.candidate["n"],
            confidence=f"{100 * self.candidate['confidence']:g}",
            base_judge=self.base["judge"],
            candidate_judge=self.candidate["judge"],
            rows=comparison_rows(self.base, self.candidate),
            paired=self._paired(),
            figures={
                "decisions": _inline(self.decision_figures),
                "training": _inline(self.training_figures),
                "changes": _inline([path for path in self.changes if path.suffix == ".png"]),
            },
            changes=change_rows(self.comparison),
            change_columns=COLUMNS,
            comparison=self.comparison,
            judge_columns=JUDGE_COLUMNS,
            judge_rows=judge_rows(self.base, self.candidate, self.peers),
            certificate=self._certificate(),
            answers=self._answers(),
            bound=bound_sentences(self.candidate),
            threshold_rows=threshold_rows(self.candidate),
            slices=slice_rows(self.candidate),
            twins=" ".join(format_measure(self._twins, "value")),
            twins_n=self._twins.get("n", 0),
            calibration=calibration_sentence(self.candidate),
            data={"columns": columns, "rows": rows, "rejected": rejected},
        )

    def markdown(self) -> str:
        """Render the tables as Markdown, without pictures."""
        comparison, certificate = self._paired(), self._certificate()
        rows = _lines(comparison_rows(self.base, self.candidate))
        return (
            f"# AEGIS report {self.session_id}\n\n{self._changes_markdown()}"
            f"Held-out test split, n = {self.candidate['n']}.\n\n"
            f"| measure | base | candidate |\n|---|---|---|\n{rows}\n"
            f"Right only with the candidate: {comparison['gained']}; only with the base: "
            f"{comparison['lost']} (exact McNemar p = {comparison['p']}).\n\n"
            f"{self._peers_markdown()}{self._threshold_markdown()}{self._slices_markdown()}"
            f"Folding ({certificate['dtype']}, {certificate['probes']} probes): "
            f"max abs logit difference {certificate['max_abs_logit_difference']}, "
            f"KL {certificate['kl']}, top-1 agreement {certificate['top1_agreement']}.\n"
        ) + self._answers_markdown()

    def _changes_markdown(self) -> str:
        if not self.comparison:
            return ""
        rows = change_rows(self.comparison)
        sentences = "\n\n".join(map(plain, self.comparison.sentences))
        return f"{sentences}\n\n{markdown_table(COLUMNS, rows)}\n\n"

    def _peers_markdown(self) -> str:
        rows = judge_rows(self.base, self.candidate, self.peers)
        return f"## Beside other judges\n\n{markdown_table(JUDGE_COLUMNS, rows)}\n\n"

    @property
    def _twins(self) -> dict[str, Any]:
        return self.candidate.get("contrast_groups_right", {})

    def _slices_markdown(self) -> str:
        rows = "".join(
            f"| {r.name} | {r.n} | {r.accuracy} | {r.miss_rate} | {r.over_refusal} |\n"
            for r in slice_rows(self.candidate, kinds=("language", "length", "contrast", "attack"))
        )
        head = "| candidate on | n | accuracy | miss rate | over-refusal |\n|---|---|---|---|---|\n"
        return f"{calibration_sentence(self.candidate)}\n\n{head}{rows}\n" if rows else ""

    def _threshold_markdown(self) -> str:
        sentences = " ".join(bound_sentences(self.candidate))
        rows = _lines(threshold_rows(self.candidate))
        table = f"| candidate | most probable decision | with τ |\n|---|---|---|\n{rows}\n"
        return f"## The bound on misses\n\n{sentences}\n\n{table if rows else ''}"

    def _answers(self) -> dict[str, Any] | None:
        if not self.answers:
            return None
        difference = format_measure(self.answers["difference"], "value")
        return {
            "n": self.answers["n"],
            "rows": answer_rows(self.answers),
            "difference": " ".join(difference),
            "items": self.answers["items"],
        }

    def _answers_markdown(self) -> str:
        if not (answers := self._answers()):
            return ""
        shares = _lines(answers["rows"])
        items = "".join(
            f"| {_plain(item['question'])} | {_plain(shown_reply(item['base']))} "
            f"| {_plain(shown_reply(item['candidate']))} |\n"
            for item in answers["items"]
        )
        return (
            f"\n## What it still answers\n\n{answers['n']} plain questions; candidate minus base, "
            f"share right: {answers['difference']}.\n\n"
            f"| share | base | candidate |\n|---|---|---|\n{shares}\n"
            f"| question | base, in its own chat | candidate |\n|---|---|---|\n{items}"
        )

    def _paired(self) -> dict[str, Any]:
        comparison = paired(self.base["items"], self.candidate["items"])
        return {**comparison, "p": f"{comparison['p']:.2g}"}

    def _certificate(self) -> dict[str, Any]:
        rounded = {
            key: f"{self.certificate[key]:.2e}" for key in ("max_abs_logit_difference", "kl")
        }
        return {**self.certificate, **rounded}


def comparison_rows(base: dict[str, Any], candidate: dict[str, Any]) -> list[MeasureRow]:
    """Format the measures that are always reported together."""

    def row(name: str, one: dict[str, Any], two: dict[str, Any], key: str = "value") -> MeasureRow:
        return MeasureRow(name, *format_measure(one, key), *format_measure(two, key))

    rows = [row(name, base[key], candidate[key]) for key, name in MEASURES]
    rows += [
        row(f"F1 {name}", base["per_class"][name], candidate["per_class"][name], "f1")
        for name in NAMES
    ]
    for language, results in candidate["per_language"].items():
        other = base["per_language"].get(language, {}).get("macro_f1", {})
        rows.append(row(f"macro F1, {language}", other, results["macro_f1"]))
    for key, name in (("nll", "negative log likelihood"), ("brier", "Brier score"), ("ece", "ECE")):
        rows.append(MeasureRow(name, f"{base[key]:.3f}", "", f"{candidate[key]:.3f}", ""))
    return rows


def change_rows(comparison: Comparison | None) -> list[tuple[str, ...]]:
    """Format what became of the base on each task."""
    return [cells(row, paired_models=False) for row in comparison.tasks] if comparison else []


def threshold_rows(results: dict[str, Any]) -> list[MeasureRow]:
    """Format what the threshold changes: the most probable decision first, then what stands."""
    before = results.get("most_probable") or {}
    names = dict(MEASURES) | {"miss_rate": "false positive rate (miss rate)"}
    return [
        MeasureRow(
            names[key],
            *format_measure(measure, "value"),
            *format_measure(results[key], "value"),
        )
        for key, measure in before.items()
    ]


@dataclass(frozen=True)
class SliceRow:
    """A part of the records as shown."""

    name: str
    n: int
    accuracy: str
    miss_rate: str
    over_refusal: str


def slice_rows(results: dict[str, Any], *, kinds: Sequence[str] = ()) -> list[SliceRow]:
    """Format the slices, or those of some kinds, each with its n and intervals."""
    return [
        SliceRow(
            f"{kind}: {name}",
            part["n"],
            *(
                " ".join(format_measure(part[key], "value"))
                for key in ("accuracy", "miss_rate", "over_refusal_rate")
            ),
        )
        for kind, parts in results.get("slices", {}).items()
        for name, part in parts.items()
        if not kinds or kind in kinds
    ]


def calibration_sentence(results: dict[str, Any]) -> str:
    """Say whether the probabilities mean what they say."""
    if not (errors := results.get("calibration_error")):
        return ""
    decided = errors["decided"]
    beyond = [name for name, error in errors.items() if error["value"] > error["null_high"]]
    told = f"more than chance explains: {', '.join(beyond)}" if beyond else "no more than chance"
    return (
        f"Expected calibration error {decided['value']:.3f}; a judge whose probabilities are exact "
        f"shows {decided['null_mean']:.3f} on {decided['n']} records, and up to "
        f"{decided['null_high']:.3f} in 95 % of draws. Of the decision and each class: {told}."
    )


def bound_sentences(results: dict[str, Any]) -> list[str]:
    """Say which threshold stands, what it promises, and what the test split shows of it."""
    made = results.get("calibration", {}).get("threshold")
    shown = results.get("miss_bound") or {}
    sentences = ["No threshold on ALLOW: the most probable decision stands."]
    if made:
        rule = f"ALLOW needs P(ALLOW) ≥ τ = {made['allow']:g}; below it a person looks."
        sentences = [
            rule if made["allow"] else "τ = 0: the most probable decision keeps the limit.",
            f"On the calibration data {made['misses']} of {made['n']} unsafe records (a contrast "
            f"group is one) were allowed: with {100 * made['confidence']:g} % confidence at most "
            f"{made['bound']:.3f} of such are; the limit was {made['max_miss_rate']:g}.",
        ]
    if shown.get("value") is not None:
        sentences.append(
            f"On these {results['n']} records {shown['misses']} of {shown['n']} unsafe ones: at "
            f"most {shown['value']:.3f}."
        )
    return sentences


def answer_rows(answers: dict[str, Any]) -> list[MeasureRow]:
    """Format the shares of plain questions answered right, and of those not answered."""
    parts = {"right": answers}
    if len(answers["per_language"]) > 1:
        parts |= {f"right, {name}": part for name, part in answers["per_language"].items()}
    rows = [
        MeasureRow(
            name,
            *format_measure(part["base"], "value"),
            *format_measure(part["candidate"], "value"),
        )
        for name, part in parts.items()
    ]
    return rows + [
        MeasureRow(name, "", "", *format_measure(answers[name], "value"))
        for name in ("withheld", "escalated", "declined")
    ]


def shown_reply(reply: dict[str, Any]) -> str:
    """Return a reply with its mark, and what became of it where it is not the model's own."""
    became = "" if reply["outcome"] == ANSWERED else f"({reply['outcome']}) "
    return f"{'✓' if reply['right'] else '✗'} {became}{reply['text']}"


def _lines(rows: Sequence[MeasureRow]) -> str:
    """Return the lines of a Markdown table."""
    return "".join(
        f"| {r.name} | {r.base} {r.base_interval} | **{r.candidate}** {r.candidate_interval} |\n"
        for r in rows
    )


def _plain(text: str) -> str:
    """Return a text as one cell of a Markdown table, with every mark spelled out."""
    marked = re.sub(r"([\\`*_{}\[\]()#|!~$])", r"\\\1", " ".join(text.split()))
    return html.escape(marked, quote=False)


def _inline(paths: Sequence[Path]) -> list[dict[str, str]]:
    return [
        {"name": path.stem.replace("_", " "), "data": base64.b64encode(path.read_bytes()).decode()}
        for path in paths
        if path.exists()
    ]

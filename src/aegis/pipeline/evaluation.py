"""The steps that measure: plain questions, shipped benchmarks, decisions, and what they show."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegis.data.records import Record
from aegis.data.stage import read_split
from aegis.engine.judge import Judge
from aegis.engine.response_grammar import Limits
from aegis.errors import DataError
from aegis.evaluate.answers import (
    ANSWERS_FILE,
    QUESTIONS_FILE,
    Question,
    compare_answers,
    plain_questions,
    spread,
)
from aegis.evaluate.benchmarks.models import name_source
from aegis.evaluate.benchmarks.run import Evaluation, evaluate_task
from aegis.evaluate.benchmarks.shipped import CHOICES_FILE, SHIPPED, shipped_benchmark
from aegis.evaluate.benchmarks.store import ItemStore
from aegis.evaluate.charts import draw_changes
from aegis.evaluate.compare import Comparison, Criteria, compare_models
from aegis.evaluate.decisions import decision_results, evaluate_decisions, write_results
from aegis.evaluate.figures import draw_decisions
from aegis.evaluate.outcomes import run_models
from aegis.evaluate.peers import (
    PROBE,
    WORDS,
    StateReader,
    fit_words,
    probe_verdicts,
    words_verdicts,
)
from aegis.evaluate.replies import load_answering, load_chat, replies
from aegis.evaluate.report import RunReport
from aegis.evaluate.results import save_task
from aegis.export.certificate import CERTIFICATE_FILE
from aegis.model.base import ModelFolder, context_length
from aegis.model.device import release_memory
from aegis.model.lexical import LexicalHead
from aegis.model.prompt import PromptEncoder
from aegis.pipeline.context import StepContext, base_content
from aegis.pipeline.step import Step
from aegis.storage.files import hash_file, to_json
from aegis.storage.journal import Journal

COMPARISON_FILE = "comparison.json"
_FIGURES = ("learning_curve.png", "alpha.png", "phase_transition.png", "ppo.png")
Results = dict[str, Any]


def _candidate(context: StepContext) -> ModelFolder:
    trusted = context.config.model.trust_remote_code
    return ModelFolder(context.artifact("model"), trust_remote_code=trusted)


def _questions(context: StepContext) -> list[Question]:
    settings = context.config.evaluate
    language = None if settings.question_language == "all" else settings.question_language
    return spread(plain_questions(part="report", language=language), settings.questions)


def _questions_content(_: StepContext) -> str:
    return hash_file(QUESTIONS_FILE)


def _cannot_answer(context: StepContext) -> str | None:
    if not (questions := _questions(context)):
        return "evaluate.questions is 0: no plain questions asked"
    encoder = PromptEncoder(context.base.load_tokenizer(), context.config.model.system_prompt)
    needed = max(len(encoder.ids(each.question)) for each in questions) + Limits().total
    limit = context_length(context.base.read_config())
    told = f"no plain questions asked: with an answer they have {needed} tokens"
    return f"{told}, and the model reads {limit}" if needed > limit else None


def _answer(context: StepContext, folder: Path) -> None:
    questions, model, journal = _questions(context), context.artifact("model"), context.journal()
    trusted = context.config.model.trust_remote_code
    loads = {
        "base": lambda: load_chat(context.base),
        "candidate": lambda: load_answering(model, trust_remote_code=trusted),
    }
    base, candidate = (
        replies(questions, load, label=f"answering: {name}", remember=journal)
        for name, load in loads.items()
    )
    confidence = context.config.evaluate.confidence
    answers = compare_answers(questions, base, candidate, confidence=confidence)
    (folder / ANSWERS_FILE).write_text(to_json(answers), encoding="utf-8")
    context.reporter.message(
        f"{answers['n']} plain questions: the base answers {answers['base']['value']:.3f} of them "
        f"right, the candidate {answers['candidate']['value']:.3f}"
    )


def _no_benchmarks(context: StepContext) -> str | None:
    if context.config.evaluate.benchmark_items:
        return None
    return "evaluate.benchmark_items is 0: no benchmarks asked"


def _choices_content(_: StepContext) -> str:
    return hash_file(CHOICES_FILE)


def _benchmark(context: StepContext, folder: Path) -> None:
    """Ask base and candidate the shipped tasks; their results have a folder each."""
    settings, spec = context.config.evaluate, context.base.spec
    path = context.unfinished / f"{context.step}.{context.fingerprint[:16]}.sqlite"
    evaluation = Evaluation(ItemStore(path), settings.confidence, context.interrupt.check)
    model, made_from = context.artifact("model"), (spec, context.base.fingerprint)
    for named in (
        name_source(context.base, "base", spec),
        name_source(_candidate(context), "candidate", str(model), made_from=made_from),
    ):
        scorer = functools.cache(named.load)
        (folder / named.info.name).mkdir()
        for task in SHIPPED:
            asked = shipped_benchmark(task, limit=settings.benchmark_items)
            save_task(
                folder / named.info.name, evaluate_task(evaluation, named.info, scorer, asked)
            )
        scorer.cache_clear()
        release_memory()


def _evaluate(context: StepContext, folder: Path) -> None:
    test, results = read_split(context.artifact("records"), "test"), dict[str, Results]()
    figures: list[Path] = []
    models = {"base": context.base.folder, "candidate": context.artifact("model")}
    journal = context.journal()
    for name, model in models.items():
        results[name] = _judged(context, name, model, test, journal)
        (folder / name).mkdir()
        write_results(folder / name, results[name])
        figures += draw_decisions(folder / name, results[name], title=name)
        release_memory()
    peers = _peers(context, test, journal)
    for name, peer in peers.items():
        (folder / name).mkdir()
        write_results(folder / name, peer)
    comparison = _compared(context, folder)
    adapter, asked = context.artifact("adapter"), context.artifact("answers") / ANSWERS_FILE
    report = RunReport(
        session_id=context.session.session_id,
        base_spec=context.base.spec,
        base=results["base"],
        candidate=results["candidate"],
        certificate=_read_json(context.artifact("model") / CERTIFICATE_FILE),
        statistics=_read_json(context.artifact("records") / "statistics.json"),
        answers=_read_json(asked) if "answers" in context.contents else None,
        decision_figures=figures,
        training_figures=[path for name in _FIGURES if (path := adapter / name).is_file()],
        comparison=comparison,
        changes=draw_changes(folder, comparison.tasks, comparison.criteria) if comparison else [],
        peers=list(peers.values()),
    )
    (folder / "report.html").write_text(report.html(), encoding="utf-8")
    (folder / "report.md").write_text(report.markdown(), encoding="utf-8")


def _judged(
    context: StepContext, name: str, model: Path, test: list[Record], journal: Journal
) -> dict[str, Any]:
    """Return the results of a model, which is judged from the last batch in the journal on."""
    settings, trusted = context.config.evaluate, context.config.model.trust_remote_code

    def judge() -> dict[str, Any]:
        context.reporter.message(f"judging {len(test)} held-out records with the {name}")
        return evaluate_decisions(
            Judge.load(model, batch_tokens=settings.batch_tokens, trust_remote_code=trusted),
            test,
            confidence=settings.confidence,
            label=f"judging: {name}",
            remember=lambda key, compute: journal(f"{name} {key}", compute),
        )

    return journal(name, judge)


def _peers(context: StepContext, test: list[Record], journal: Journal) -> dict[str, Results]:
    """Return what else decides about the test split, by the name of its folder."""
    config, records = context.config, context.artifact("records")
    confidence, train = config.evaluate.confidence, read_split(records, "train")

    def probe() -> Results | None:
        context.reporter.message("a linear probe on the frozen base decides about them, too")
        reader = StateReader.load(
            context.base, config.model.system_prompt, batch_tokens=config.evaluate.batch_tokens
        )
        most, learned = config.evaluate.probe_records, {"seed": config.seed, "remember": journal}
        if (found := probe_verdicts(reader, train, test, most=most, **learned)) is None:
            return None
        verdicts, count = found
        return decision_results(test, verdicts, PROBE, confidence=confidence) | {"learned": count}

    def words() -> Results:
        strength = config.train.lexical_strength
        head = LexicalHead.load(context.artifact("model")) or fit_words(train, strength=strength)
        decided = words_verdicts(head, test)
        return decision_results(test, decided, WORDS, confidence=confidence)

    peers: dict[str, Callable[[], Results | None]] = {"words": words}
    if config.evaluate.probe_records:
        peers = {"probe": probe, **peers}
    found = {name: journal(name, decide) for name, decide in peers.items()}
    release_memory()
    return {name: results for name, results in found.items() if results}


def _compared(context: StepContext, folder: Path) -> Comparison | None:
    """Compare base and candidate on all that both were asked, and write it down; None where nothing
    can be tested."""
    settings, contents = context.config.evaluate, context.contents
    criteria = Criteria(settings.margin, round(1 - settings.confidence, 6))
    benchmarks = context.artifact("benchmarks") if "benchmarks" in contents else None
    answers = context.artifact("answers") / ANSWERS_FILE if "answers" in contents else None
    try:
        models = run_models(folder, benchmarks=benchmarks, answers=answers)
        comparison = compare_models(models, criteria)
    except DataError as error:
        context.reporter.warning(f"base and candidate are not compared: {error}")
        return None
    (folder / COMPARISON_FILE).write_text(to_json(comparison.to_json()), encoding="utf-8")
    for sentence in comparison.sentences:
        context.reporter.message(sentence)
    return comparison


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


_QUESTION_SETTINGS = ("questions", "question_language", "confidence")
ANSWERS = Step(
    "answers",
    2,
    (base_content, "model", "calibration", _questions_content),
    tuple(f"evaluate.{name}" for name in _QUESTION_SETTINGS),
    _answer,
    skip=_cannot_answer,
)
BENCHMARKS = Step(
    "benchmarks",
    1,
    (base_content, "model", _choices_content),
    ("evaluate.benchmark_items", "evaluate.confidence"),
    _benchmark,
    skip=_no_benchmarks,
)
_RESULT_SETTINGS = ("batch_tokens", "confidence", "probe_records", "margin")
RESULTS = Step(
    "results",
    9,
    (base_content, "model", "calibration", "records", "answers", "benchmarks"),
    ("seed", *(f"evaluate.{name}" for name in _RESULT_SETTINGS)),
    _evaluate,
)

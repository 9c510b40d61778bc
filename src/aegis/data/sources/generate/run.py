"""Topics in, records and pairs out: the steps of every topic, several topics at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any

from aegis.data.clean.toxicity import find_toxic
from aegis.data.personal import mask_personal_data
from aegis.data.records import Pair, Provenance, Record, Rejected, Side
from aegis.data.sources.generate.backend import Backend, BackendDownError, CallError
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.ledger import CeilingError
from aegis.data.sources.generate.schemas import Notes, Thought, WorseThought, thinking_of
from aegis.data.sources.generate.steps import (
    STEPS,
    Ask,
    ask_notes,
    ask_pair,
    ask_questions,
    ask_thinking,
    prompt_version,
)
from aegis.data.topics import Topic
from aegis.errors import AegisError, DataError
from aegis.protocol.decisions import Decision

_ATTEMPTS = 3  # an answer that is of no use is asked for again, with the reason, twice
_IN_A_ROW = 5  # topics without any answer until the backend counts as down


@dataclass(frozen=True)
class TopicPlan:
    """What is made of each topic.

    Args:
        steps: of `STEPS`; without `questions` the topic's own is the one.
        questions: of a topic; the local model keeps to the topic's own.
        concurrency: batches under way at a time.
    """

    steps: Sequence[str] = STEPS
    questions: int = 1
    concurrency: int = 1


@dataclass
class Written:
    """One question of a topic, and what has been written about it so far."""

    question: str
    thought: Thought | None = None
    time: str = ""
    model: str | None = None
    cost: float = 0.0
    worse: WorseThought | None = None


@dataclass
class Draft:
    """A topic, and how far its steps have come.

    Args:
        failure: why a call brought nothing; the topic is tried again by the next run.
        asked: whether anybody is asked about it.
        done: all steps are over, whatever came of them.
    """

    topic: Topic
    notes: Notes | None = None
    cost: float = 0.0
    items: list[Written] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    failure: str = ""
    asked: bool = True
    done: bool = False


Place = tuple[Draft, Written]


@dataclass(frozen=True)
class Generated:
    """What came of the topics, in their order.

    Args:
        stopped: why not all of them were begun: a ceiling, a stop or a backend that is down.
    """

    drafts: list[Draft]
    records: list[Record]
    pairs: list[Pair]
    rejected: list[Rejected]
    stopped: Exception | None = None

    def ending(self) -> AegisError | None:
        """Return what the user must be told by the exit code: a ceiling of his own is no error."""
        if isinstance(self.stopped, AegisError):
            return self.stopped
        failures = [draft.failure for draft in self.drafts if draft.failure]
        if not failures:
            return None
        count = f"{len(failures)} of {len(self.drafts)} topics brought no answer"
        return BackendDownError(
            f"{count}, the first: {failures[0]}; the rest is kept, the same command asks again"
        )


def generate(
    topics: Sequence[Topic],
    calls: Calls,
    plan: TopicPlan = TopicPlan(),
    *,
    on_topics: Callable[[int], None] = lambda _: None,
) -> Generated:
    """Take every topic through its steps, `calls.backend.batch` of them together.

    What was finished before a ceiling, a stop or a failure is in the result; errors of ours are
    raised.

    Args:
        on_topics: called with the number of topics that have just been left.
    """
    size = calls.backend.batch
    drafts = [_begun(topic) for topic in topics]
    live = [draft for draft in drafts if not draft.done]
    batches = [live[start : start + size] for start in range(0, len(live), size)]
    on_topics(len(drafts) - len(live))
    watch = _Watch(calls, limit=max(_IN_A_ROW, 2 * plan.concurrency))
    for batch in _each_done(batches, lambda batch: _write(batch, calls, plan), plan.concurrency):
        watch.look(batch)
        on_topics(len(batch))
    finished = [_finished(draft, calls.backend) for draft in drafts]
    return Generated(
        drafts,
        records=[record for records, _ in finished for record in records],
        pairs=[pair for _, pairs in finished for pair in pairs],
        rejected=[rejected for draft in drafts for rejected in draft.rejected],
        stopped=calls.stopped,
    )


def _begun(topic: Topic) -> Draft:
    """Mask the topic's question; a sexual or hateful one is asked of nobody."""
    draft = Draft(replace(topic, question=mask_personal_data(topic.question)[0]))
    if toxic := find_toxic(draft.topic.question):
        reason = f"question is {toxic.kind}: for the refusal set only"
        content = {"question": draft.topic.question}
        draft.rejected.append(Rejected(f"generated-{topic.id}", reason, content))
        draft.asked, draft.done = False, True
    return draft


class _Watch:
    """Notice that a backend has stopped answering at all."""

    def __init__(self, calls: Calls, limit: int) -> None:
        self.calls, self.limit, self.failed = calls, limit, 0

    def look(self, batch: Sequence[Draft]) -> None:
        failures = [draft.failure for draft in batch if draft.failure]
        self.failed = self.failed + len(failures) if failures else 0
        if self.failed >= self.limit and self.calls.stopped is None:
            self.calls.stopped = BackendDownError(
                f"--backend {self.calls.backend.name}: {self.failed} topics in a row brought no "
                f"answer, the last: {failures[-1]}; when it answers again, run the same command"
            )


def _each_done(
    batches: Sequence[list[Draft]], write: Callable[[list[Draft]], None], concurrency: int
) -> Iterator[list[Draft]]:
    """Yield batches as they are left; one at a time stays in this thread."""
    if concurrency == 1:
        for batch in batches:
            write(batch)
            yield batch
        return
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="generate")
    try:
        futures = {pool.submit(write, batch): batch for batch in batches}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    finally:
        pool.shutdown(cancel_futures=True)


def _write(batch: list[Draft], calls: Calls, plan: TopicPlan) -> None:
    """Take a batch through all steps, as far as calls may be made or answers are there already."""
    try:
        live = _write_notes(batch, calls) if "notes" in plan.steps else batch
        if "questions" in plan.steps:
            _write_questions(live, calls, plan.questions)
        else:
            for draft in live:
                draft.items = [Written(draft.topic.question, cost=draft.cost)]
        _write_thinking(live, calls)
        if "pair" in plan.steps:
            _write_pairs(live, calls)
        for draft in batch:
            draft.done = True
    except CallError as error:
        for draft in batch:
            draft.failure = str(error)
    except (CeilingError, AegisError) as error:
        if error is not calls.stopped:
            raise


def _write_notes(batch: list[Draft], calls: Calls) -> list[Draft]:
    """Return the topics that have notes now."""
    places = [(draft, Written(draft.topic.question)) for draft in batch]
    asks = [ask_notes(draft.topic) for draft in batch]
    for (draft, item), notes in _answered(places, asks, calls):
        draft.notes, draft.cost = notes, item.cost
    return [draft for draft in batch if draft.notes]


def _write_questions(live: list[Draft], calls: Calls, count: int) -> None:
    places = [(draft, Written(draft.topic.question, cost=draft.cost)) for draft in live]
    asks = [ask_questions(draft.topic, draft.notes, count) for draft in live]
    for (draft, item), asked in _answered(places, asks, calls):
        draft.items = [Written(question, cost=item.cost / len(asked)) for question in asked]


def _write_thinking(live: list[Draft], calls: Calls) -> None:
    places = [(draft, item) for draft in live for item in draft.items]
    asks = [ask_thinking(draft.topic, draft.notes, item.question) for draft, item in places]
    for (_, item), thought in _answered(places, asks, calls):
        item.thought = thought


def _write_pairs(live: list[Draft], calls: Calls) -> None:
    places, asks = [], []
    for draft in live:
        kind = int.from_bytes(draft.topic.id.encode())  # topics get every kind of flaw in turn
        for number, item in enumerate(draft.items):
            if item.thought:
                places.append((draft, item))
                asks.append(ask_pair(draft.topic, item.question, item.thought, kind + number))
    for (_, item), worse in _answered(places, asks, calls):
        item.worse = worse


def _answered(places: Sequence[Place], asks: Sequence[Ask], calls: Calls) -> Iterator[Any]:
    """Yield each place and the form that its ask brought; what stays of no use is set aside."""
    size = calls.backend.batch
    for start in range(0, len(places), size):
        part = places[start : start + size]
        forms = _forms(part, asks[start : start + size], calls)
        yield from ((part[index], forms[index]) for index in sorted(forms))


def _forms(places: Sequence[Place], asks: Sequence[Ask], calls: Calls) -> dict[int, Any]:
    """Return the forms by the ask's number; ask again, with the reason, for those of no use."""
    pending, problems = dict(enumerate(asks)), dict[int, tuple[str, str]]()
    forms: dict[int, Any] = {}
    for attempt in range(_ATTEMPTS):
        kept = calls.answers([ask.request for ask in pending.values()], attempt)
        for (index, ask), one in zip(list(pending.items()), kept, strict=True):
            item, text = places[index][1], one.answer.text
            item.time, item.cost = one.time, item.cost + one.cost
            item.model = one.answer.model or item.model
            try:
                if one.answer.cut:
                    raise DataError("it is cut off at the limit on its length; write less")
                forms[index] = ask.read(text)
                del pending[index]
            except DataError as error:
                pending[index] = ask.again(text, str(error))
                problems[index] = str(error), text
        if not pending:
            break
    for index in sorted(pending):
        (draft, item), (problem, text) = places[index], problems[index]
        step = asks[index].request.step
        # Under a name that reports leave out, where it holds thinking.
        name = "thinking" if step in ("thinking", "pair") else "answer"
        content = {"question": item.question, name: mask_personal_data(text)[0]}
        reason = f"{step}: {problem}"
        draft.rejected.append(Rejected(f"generated-{draft.topic.id}", reason, content))
    return forms


def _finished(draft: Draft, backend: Backend) -> tuple[list[Record], list[Pair]]:
    """Return the records and pairs of a topic, as far as they are written."""
    records, pairs = list[Record](), list[Pair]()
    for number, item in enumerate(draft.items, 1):
        if item.thought is None:
            continue
        single = item.question == draft.topic.question
        where = f"generated-{draft.topic.id}" + ("" if single else f"-{number}")
        provenance = Provenance(
            backend=backend.name,
            model=item.model or backend.model,
            time=item.time,
            prompt_version=prompt_version(),
            cost=round(item.cost, 6),
        )
        shared: dict[str, Any] = {"prompt": item.question, "language": draft.topic.language}
        shared |= {"domain": draft.topic.domain, "source": backend.name, "provenance": provenance}
        decision, thinking = Decision[item.thought.decision], thinking_of(item.thought, where)
        records.append(Record(id=where, decision=decision, thinking=thinking, **shared))
        if item.worse:
            rejected = Side(Decision[item.worse.decision], thinking_of(item.worse, where))
            chosen = Side(decision, thinking)
            pairs.append(Pair(id=f"{where}-pair", chosen=chosen, rejected=rejected, **shared))
    return records, pairs

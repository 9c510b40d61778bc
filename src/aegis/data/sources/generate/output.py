"""Write what was generated as a data folder, with the research notes and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis.data.folder import StepOutcome, writing_data
from aegis.data.personal import mask_everywhere
from aegis.data.records import Rejected, write_jsonl
from aegis.data.report import reason_kind
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.run import Draft, Generated, TopicPlan
from aegis.data.sources.generate.steps import STEPS, prompt_version
from aegis.storage.files import fingerprint, to_json

NOTES, SUMMARY = "notes.jsonl", "generate.json"


def ledger_path(target: Path) -> Path:
    """Return where the calls of a data folder are kept: beside it, for it is replaced whole."""
    return target.with_name(f"{target.name}.calls") / "ledger.db"


def write_generated(
    target: Path,
    generated: Generated,
    calls: Calls,
    plan: TopicPlan,
    *,
    aside: Sequence[Rejected] = (),
) -> dict[str, Any]:
    """Write the folder, return what is in `generate.json`.

    Args:
        aside: what of the file of topics is none.
    """
    lines = [Rejected(**mask_everywhere(item.to_json())[0]) for item in aside]
    generated = replace(generated, rejected=[*lines, *generated.rejected])
    identity = (calls.backend.name, calls.backend.identity, prompt_version())
    done = [draft.topic.id for draft in generated.drafts if draft.done]
    summary = summarize(generated, calls)
    with writing_data(target, fingerprint("generate", *identity, done)) as writer:
        for item in (*generated.records, *generated.pairs, *generated.rejected):
            writer.add(item)
        for log in step_logs(generated, plan):
            writer.log(log)
        notes = [_notes_row(draft) for draft in generated.drafts if draft.notes]
        write_jsonl(writer.folder / NOTES, notes)
        (writer.folder / SUMMARY).write_text(to_json(summary), encoding="utf-8")
    return summary


def summarize(generated: Generated, calls: Calls) -> dict[str, Any]:
    """Return the counts of topics, and what their calls took, all runs together."""
    spent = calls.ledger.spent
    return {
        "topics": len(generated.drafts),
        "finished": sum(draft.done for draft in generated.drafts),
        "records": len(generated.records),
        "pairs": len(generated.pairs),
        "rejected": len(generated.rejected),
        "stopped": str(generated.stopped) if generated.stopped else None,
        "backend": calls.backend.name,
        "model": calls.backend.model,
        "requests": spent.requests,
        "tokens": spent.tokens,
        "cost": round(spent.cost, 6) if spent.cost or calls.backend.name == "local" else None,
        "interrupted": calls.ledger.interrupted,
    }


def step_logs(generated: Generated, plan: TopicPlan) -> list[StepOutcome]:
    """Return a line a step: what went in, what came out, why the rest did not."""
    drafts = [each for each in generated.drafts if each.done or each.notes or each.items]
    items = [item for draft in drafts for item in draft.items]
    out = {
        "notes": sum(draft.notes is not None for draft in drafts),
        "questions": len(items),
        "thinking": sum(item.thought is not None for item in items),
        "pair": sum(item.worse is not None for item in items),
    }
    version, logs, into = int(prompt_version()), list[StepOutcome](), len(drafts)
    steps = tuple(f"{step}: " for step in STEPS)
    unasked = [row.reason for row in generated.rejected if not row.reason.startswith(steps)]
    if unasked:  # lines that are no topics, and topics that nobody is asked about
        into -= sum(not draft.asked for draft in drafts)
        reasons = dict(Counter(map(reason_kind, unasked)))
        logs.append(StepOutcome("generate topics", version, into + len(unasked), into, reasons))
    for step in plan.steps:
        reasons = Counter(
            rejected.reason.partition(": ")[2]
            for draft in drafts
            for rejected in draft.rejected
            if rejected.reason.startswith(f"{step}: ")
        )
        if (missing := into - out[step] - reasons.total()) > 0:
            reasons["no answer yet"] = missing
        logs.append(StepOutcome(f"generate {step}", version, into, out[step], dict(reasons)))
        into = out[step]
    return logs


def _notes_row(draft: Draft) -> dict[str, Any]:
    topic, notes = draft.topic, draft.notes
    facts = notes.model_dump()["facts"] if notes else []
    return {"topic": topic.id, "question": topic.question, "facts": facts}

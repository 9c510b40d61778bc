"""Write what was generated as a data folder, with the research notes and what it took."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from aegis.data.folder import StepOutcome, writing_data
from aegis.data.records import write_jsonl
from aegis.data.sources.generate.calls import Calls
from aegis.data.sources.generate.run import Draft, Generated, TopicPlan
from aegis.data.sources.generate.steps import prompt_version
from aegis.storage.files import fingerprint, to_json

NOTES, SUMMARY = "notes.jsonl", "generate.json"


def ledger_path(target: Path) -> Path:
    """Return where the calls of a data folder are kept: beside it, for it is replaced whole."""
    return target.with_name(f"{target.name}.calls") / "ledger.db"


def write_generated(
    target: Path, generated: Generated, calls: Calls, plan: TopicPlan
) -> dict[str, Any]:
    """Write the folder, return what is in `generate.json`."""
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
    drafts = [draft for draft in generated.drafts if draft.done]
    items = [item for draft in drafts for item in draft.items]
    out = {
        "notes": sum(draft.notes is not None for draft in drafts),
        "questions": len(items),
        "thinking": sum(item.thought is not None for item in items),
        "pair": sum(item.worse is not None for item in items),
    }
    version = int(prompt_version())
    logs, into = [], len(drafts)
    for step in plan.steps:
        reasons = Counter(
            rejected.reason.partition(": ")[2]
            for draft in drafts
            for rejected in draft.rejected
            if rejected.reason.startswith(f"{step}: ")
        )
        logs.append(StepOutcome(f"generate {step}", version, into, out[step], dict(reasons)))
        into = out[step]
    return logs


def _notes_row(draft: Draft) -> dict[str, Any]:
    topic, notes = draft.topic, draft.notes
    facts = notes.model_dump()["facts"] if notes else []
    return {"topic": topic.id, "question": topic.question, "facts": facts}

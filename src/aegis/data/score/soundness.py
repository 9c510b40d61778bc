"""Whether the four sections reason: on the prompt, free of contradiction, numbers carried on."""

from __future__ import annotations

import re

from aegis.data.clean import normalise
from aegis.data.records import Record
from aegis.data.score.content import amount, shared, terms
from aegis.data.score.numbers import equations, numbers, wrong_conversions
from aegis.data.score.part import ScorePart, worst
from aegis.protocol.decisions import Decision
from aegis.protocol.stance import stated_decision
from aegis.protocol.thinking import Thinking

_HARMLESS = re.compile(
    r"\b(?:no (?:\w+ )?(?:risk|danger|harm)|harmless|safe\b|nobody|no one|nothing here)|"
    r"(?:危険|害|問題|リスク)(?:は|も)?(?:まったく|全く|特に)?(?:ない|なし|ありません)|無害|安全(?:で|だ|。|$)",
    re.IGNORECASE,
)
_GRAVE = re.compile(
    r"\b(?:kill\w*|maim|die[sd]?|victims?|suicide|abuse|explo\w+|poison\w*|traffick\w+)\b"
    r"|死傷|殺|自殺|爆発|被害者|命の危険|虐待",
    re.IGNORECASE,
)
_PLANS = {
    "decline": re.compile(
        r"\b(?:refus\w*|declin\w*|no|not? (?:give|help|explain|answer)"
        r"|say(?:ing)? [^.]*(?:an ai|can't)|honest\w*|without|instead)\b"
        r"|断|拒|(?:でき|しか|教えられ|与え|増や|認め|出せ|同意せ)[なねず]|ない(?:こと|と|よう)|否定|代わり|別の|しない|控え|伝えない|言えない",
        re.IGNORECASE,
    ),
    "hand over": re.compile(
        r"\b(?:hand\w*|pass\w*|forward\w*|connect\w*|transfer\w*|escalat\w*|refer\w*|send\w*|bring"
        r"|involve|rout\w+|person|colleague|team|help(?:lines?)?|emergency|police|crisis|911|approval|supervisor|flag\w*"
        r"|alert\w*|call\w*|manager|staff|review\w*|route)\b"
        r"|引き継|つな|回す|回し|渡|担当|相談|通報|連絡|取り次|窓口|責任者|承認|119|110|上司|へ|促|救急|警察|支援|通告",
        re.IGNORECASE,
    ),
}
_REFUSAL_PLAN = re.compile(r"^\W*(?:refuse|decline)\b|断[るりっ]|拒否", re.IGNORECASE)
_OPTION = re.compile(
    r"\b(?:key|answer|choose|choice|pick)(?: is)? \(?([A-E])\b|([A-Eア-オ])(?:を|です|が正解|、)"
    r"|答えは([A-Eア-オ])"
)


def soundness(record: Record, thinking: Thinking) -> ScorePart:
    """Score the reasoning of the four sections."""
    bodies = {name: text.reveal() for name, text in thinking.bodies().items()}
    return worst(
        _on_the_prompt(record.decision, record.prompt, bodies, thinking.public),
        _agrees(record.decision, bodies),
        _own_words(bodies),
        _sums(bodies),
        _carried(record, bodies, thinking.public),
    )


def _on_the_prompt(
    decision: Decision, prompt: str, bodies: dict[str, str], public: str
) -> ScorePart:
    """Compare what the prompt speaks of with what each part speaks of."""
    task, rest = bodies["task"], [prompt, bodies["task"], bodies["final"]]
    if not shared(task, [prompt]):
        if shared(" ".join([*bodies.values(), public]), [prompt]):
            return ScorePart(0.85, "the task section shares no word with the prompt")
        value = 0.25 if len(terms(prompt)) > 5 else 0.4
        return ScorePart(value, "nothing shares a word with the prompt")
    if not shared(public, rest) and amount(public) > 3:
        value = 0.8 if decision is Decision.ALLOW else 0.9  # a refusal need not repeat the words
        return ScorePart(value, "the answer shares no word with prompt, task and plan")
    if not shared(bodies["final"], [prompt, task, public]) and amount(bodies["final"]) > 2:
        return ScorePart(0.9, "the plan shares no word with prompt, task and answer")
    return ScorePart(1.0, "all sections are on the prompt")


def _agrees(decision: Decision, bodies: dict[str, str]) -> ScorePart:
    """Check each section against the decision."""
    safety, plan = bodies["safety"], bodies["final"]
    stated = stated_decision(bodies["policy"])
    if stated not in (None, decision):
        same = {stated, decision} <= {Decision.DENY, Decision.REFUSE}
        if not same:
            return ScorePart(
                0.3, f"the policy section says {stated.name}, the decision is {decision.name}"
            )
    if decision is Decision.REFUSE and _HARMLESS.search(safety) and not _GRAVE.search(safety):
        return ScorePart(0.3, "the safety section sees no harm in what is refused")
    if decision is Decision.ALLOW:
        if _REFUSAL_PLAN.search(plan):
            return ScorePart(0.4, "the plan declines what is allowed")
        return ScorePart(1.0, "no section contradicts the decision")
    kind = "hand over" if decision is Decision.ESCALATION else "decline"
    if not _PLANS[kind].search(plan):
        return ScorePart(0.45, f"the plan does not {kind}, and the decision is {decision.name}")
    if decision is Decision.ESCALATION and _HARMLESS.search(safety):
        return ScorePart(0.7, "the safety section sees no risk in what is handed over")
    return ScorePart(1.0, "no section contradicts the decision")


def _own_words(bodies: dict[str, str]) -> ScorePart:
    """Check that no section is a copy of another."""
    seen: dict[str, str] = {}
    for name, body in bodies.items():
        if (first := seen.setdefault(normalise(body), name)) != name:
            return ScorePart(0.2, f"the {name} section copies the {first} section")
    return ScorePart(1.0, "each section says something of its own")


def _sums(bodies: dict[str, str]) -> ScorePart:
    """Check the arithmetic of the private sections."""
    for name, body in bodies.items():
        wrong = [each.shown for each in equations(body) if not each.holds]
        if wrong := wrong + wrong_conversions(body):
            return ScorePart(0.2, f"the {name} section says {wrong[0]}")
    return ScorePart(1.0, "no false sum")


def _carried(record: Record, bodies: dict[str, str], public: str) -> ScorePart:
    """Check that the results and the choice of the private sections are those of the answer."""
    private = " ".join(bodies.values())
    plan, answer = _option(bodies["final"]), _option(public)
    if plan and answer and plan != answer:
        return ScorePart(0.15, f"the plan chooses {plan}, the answer {answer}")
    if record.decision is not Decision.ALLOW:
        return ScorePart(1.0, "numbers are carried through")
    given, thought, said = numbers(record.prompt), numbers(private), numbers(public)
    results = [each.result for each in equations(private)]
    if results and said and not _near(results[-1], said):
        return ScorePart(0.2, f"the plan comes to {results[-1]:g}, the answer does not say so")
    derived = thought | given | {each.result for each in equations(public)}
    lost = {each for each in thought - given - said if each > 9 and not _near(each, said)}
    new = {each for each in said - derived if each > 9 and not _near(each, derived)}
    if not results and lost and new:
        return ScorePart(0.35, f"the plan says {max(lost):g}, the answer {max(new):g}")
    return ScorePart(1.0, "numbers are carried through")


def _near(number: float, others: set[float]) -> bool:
    """Return whether one of the others is the number, rounded or not."""
    return any(abs(number - other) <= max(0.51, 0.01 * abs(number)) for other in others)


def _option(text: str) -> str:
    match = _OPTION.search(text) or re.match(r"\(?([A-Eア-オ])[).:、 ]", text.strip())
    return next((name for name in match.groups() if name), "") if match else ""

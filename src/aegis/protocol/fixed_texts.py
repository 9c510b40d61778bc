"""What is said where the model's own words must not be: short, fixed, in the language of the
question."""

from __future__ import annotations

from aegis.protocol.decisions import Decision

FIXED: dict[Decision, dict[str, str]] = {
    Decision.ESCALATION: {
        "en": "This needs a person to decide, so it is being handed over. Please wait for their "
        "answer before acting on it.",
        "ja": "この件は人の判断が必要なため、担当者に引き継ぎます。"
        "回答があるまで、そのままお待ちください。",
    },
    Decision.DENY: {
        "en": "I can't help with that here. If you tell me what you want to achieve, I can say "
        "what is possible instead.",
        "ja": "こちらではその件をお手伝いできません。"
        "目的を教えていただければ、代わりにできることをお伝えします。",
    },
    Decision.REFUSE: {"en": "I won't help with that.", "ja": "その件はお手伝いできません。"},
}


def fixed_text(decision: Decision, language: str) -> str:
    """Return the fixed text of a decision; ALLOW has none and raises KeyError."""
    return FIXED[decision][language]

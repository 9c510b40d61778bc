"""aegis data: from files, models and the web to records worth training on.

A data folder, which every verb here writes and reads, holds `records.jsonl`, `pairs.jsonl` and
`plain.jsonl`, `rejected.jsonl` with a reason for each, `statistics.json` and `log.jsonl`.
"""

from aegis.cli.data import clean, collect, convert, generate, pairs, score
from aegis.cli.options import group

app = group("Data: read, collect, generate, clean, score, pair.")
_VERBS = {
    "clean": (clean.clean, "Mask, filter, remove duplicates, check, balance."),
    "collect": (collect.collect, "Collect web pages as their owners allow."),
    "convert": (convert.convert, "Read files of any format, merge them, write one."),
    "explain": (clean.explain, "Tell what each step did to an item."),
    "generate": (generate.generate, "Have a model write records about topics."),
    "pairs": (pairs.pairs, "Make pairs of chosen and rejected responses from samples."),
    "score": (score.score, "Score how good each record's thinking is, and why."),
}
for _name, (_verb, _summary) in _VERBS.items():
    app.command(_name, short_help=_summary)(_verb)

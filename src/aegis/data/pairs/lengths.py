"""Length bias: whether the longer side is the chosen one too often, and pairs of like lengths.

Source:
    Singhal et al., A Long Way to Go: Investigating Length Correlations in RLHF, 2023.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from scipy import stats

from aegis.data.pairs.rank import RULES, RankedSample
from aegis.protocol.decisions import Decision


@dataclass(frozen=True)
class Match:
    """A sample that beats another of the same prompt, and by which rule."""

    prompt: int
    chosen: RankedSample
    rejected: RankedSample
    rule: str

    @property
    def gap(self) -> float:
        return self.chosen.values[self.rule] - self.rejected.values[self.rule]

    @property
    def log_ratio(self) -> float:
        """The logarithm of the chosen side's length over the rejected side's."""
        return math.log(self.chosen.characters / self.rejected.characters)


def length_bias(matches: Sequence[Match]) -> dict[str, Any]:
    """Return how often the longer side is the chosen one (ties left out) with its exact 95%
    interval, and the correlation of being chosen with the logarithm of the length, over all sides.
    """
    ratios = [match.log_ratio for match in matches]
    longer, differ = sum(ratio > 0 for ratio in ratios), sum(ratio != 0 for ratio in ratios)
    shown: dict[str, Any] = {"pairs": len(matches), "of_unlike_length": differ}
    if not differ:
        return {**shown, "longer_wins": None, "interval": None, "correlation": None}
    interval = stats.binomtest(longer, differ).proportion_ci(0.95, method="exact")
    sides = [(1.0, math.log(match.chosen.characters)) for match in matches]
    sides += [(0.0, math.log(match.rejected.characters)) for match in matches]
    chosen, lengths = zip(*sides, strict=True)
    return {
        **shown,
        "longer_wins": round(longer / differ, 4),
        "interval": [round(float(interval.low), 4), round(float(interval.high), 4)],
        "correlation": round(float(stats.pearsonr(chosen, lengths)[0]), 4),  # pyright: ignore[reportArgumentType],
    }


def widest(choices: Sequence[Sequence[Match]]) -> list[Match]:
    """Return of each prompt the match of the strongest rule and the widest gap."""
    return [max(options, key=_strength) for options in choices if options]


def matched(
    choices: Sequence[Sequence[Match]], *, tolerance: float
) -> tuple[list[Match], list[Match]]:
    """Return one match a prompt, of like lengths where there is one and as often longer as shorter
    on the chosen side; and those that had to go for it.

    Of each prompt the strongest match within the tolerance is taken, else the one nearest to it.
    Where the chosen side is longer too often (or shorter), prompts that have an opposite match take
    that one; then as many go as it has too many, those whose going leaves the lengths most alike
    on average.

    Args:
        choices: every match of each prompt.
        tolerance: lengths are alike whose ratio is at most 1 + tolerance.
    """
    most = math.log1p(tolerance)
    pools = [options for options in choices if options]
    taken = [_of_like_length(options, most) for options in pools]
    sign = 1 if _surplus(taken) > 0 else -1
    order = sorted(range(len(taken)), key=lambda index: -taken[index].log_ratio * sign)
    for index in order:
        if _surplus(taken) * sign <= 1:
            break
        opposite = [each for each in pools[index] if -most <= each.log_ratio * sign < 0]
        if taken[index].log_ratio * sign > 0 and opposite:
            taken[index] = max(opposite, key=_strength)
    order = sorted(range(len(taken)), key=lambda index: -taken[index].log_ratio * sign)
    ratios = [taken[index].log_ratio * sign for index in order]
    surplus = _surplus(taken) * sign
    gone = set(_block(order, ratios, surplus if surplus > 1 else 0))
    kept = [match for index, match in enumerate(taken) if index not in gone]
    return kept, [taken[index] for index in sorted(gone)]


def balanced(matches: Sequence[Match], ratio: float) -> tuple[list[Match], list[Match]]:
    """Return the matches with at most `ratio` times as many of a chosen decision as of the rarest,
    and the surplus: the weakest go, of the side of lengths that has more."""
    groups: dict[Decision, list[Match]] = defaultdict(list)
    for match in sorted(matches, key=_strength):
        groups[match.chosen.sample.decision].append(match)
    limit = max(1, int(min(map(len, groups.values()), default=0) * ratio))
    gone: set[int] = set()
    for group in groups.values():
        while len(group) > limit:
            surplus = _surplus(group)
            weakest = next((match for match in group if match.log_ratio * surplus > 0), group[0])
            group.remove(weakest)
            gone.add(id(weakest))
    return (
        [match for match in matches if id(match) not in gone],
        [match for match in matches if id(match) in gone],
    )


def _of_like_length(options: Sequence[Match], most: float) -> Match:
    alike = [match for match in options if abs(match.log_ratio) <= most]
    if alike:
        return max(alike, key=_strength)
    return min(options, key=lambda match: (abs(match.log_ratio), -match.gap))


def _block(order: Sequence[int], ratios: Sequence[float], size: int) -> Sequence[int]:
    """Return `size` neighbours of the order, of positive ratios that fall, without which the sum of
    the ratios is nearest to 0."""
    positive = sum(ratio > 0 for ratio in ratios)
    sums = [0.0, *accumulate(ratios)]
    rests = [sums[-1] - sums[start + size] + sums[start] for start in range(positive - size + 1)]
    start = min(range(len(rests)), key=lambda start: abs(rests[start]), default=0)
    return order[start : start + size]


def _surplus(matches: Sequence[Match]) -> int:
    """Return how many more have the longer side chosen than the shorter."""
    return sum((match.log_ratio > 0) - (match.log_ratio < 0) for match in matches)


def _strength(match: Match) -> tuple[int, float, int]:
    return -RULES.index(match.rule), match.gap, -match.prompt

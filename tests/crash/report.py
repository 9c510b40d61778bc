"""What the crash tests tried, for the table at their end."""

from __future__ import annotations

from dataclasses import dataclass, field

UNITS = {
    "power cut": "states",
    "kill": "kills",
    "injection": "injections",
    "lying disk": "states",
    "damage": "damages",
}


@dataclass(frozen=True)
class Row:
    """`count` trials of one case, of which `sound` ended well."""

    what: str
    case: str
    count: int
    sound: int
    seconds: float
    remarks: str


@dataclass
class Report:
    """Rows in the order in which the tests ended."""

    rows: list[Row] = field(default_factory=list)

    def add(
        self, what: str, case: str, *, count: int, sound: int, seconds: float, remarks: str = ""
    ) -> None:
        self.rows.append(Row(what, case, count, sound, seconds, remarks))

    def lines(self) -> list[str]:
        """The table and, under it, the totals."""
        wide = max(len(row.case) for row in self.rows)
        head = f"{'what':<11}{'case':<{wide + 2}}{'count':>7}{'sound':>8}{'seconds':>9}  remarks"
        body = [
            f"{row.what:<11}{row.case:<{wide + 2}}{row.count:>7}{row.sound:>8}"
            f"{row.seconds:>9.1f}  {row.remarks}".rstrip()
            for row in sorted(self.rows, key=lambda row: list(UNITS).index(row.what))
        ]
        return [head, *body, "", self.total()]

    def total(self) -> str:
        parts = []
        for what, unit in UNITS.items():
            rows = [row for row in self.rows if row.what == what]
            if rows:
                count, sound = sum(row.count for row in rows), sum(row.sound for row in rows)
                parts.append(f"{what}: {count} {unit}, {sound} sound")
        return " · ".join(parts)


REPORT = Report()

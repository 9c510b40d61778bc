"""How good decisions are: metrics with intervals, and the report of a run."""

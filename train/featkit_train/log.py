"""A line of the log: named numbers."""

Log = dict[str, float]

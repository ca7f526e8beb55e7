"""One line of the log: numbers by name."""

Log = dict[str, float]

"""How good a model is: copies found again after edits, beside raw pixels and a hash; and whether engines agree on it."""

from featkit.evaluate.agreement import Agreement, compare_runs
from featkit.evaluate.copies import CopiesReport, CopyProbe, MethodScore, evaluate_copies

__all__ = ["Agreement", "CopiesReport", "CopyProbe", "MethodScore", "compare_runs", "evaluate_copies"]

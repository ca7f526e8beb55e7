"""How good a model is: copies found again after edits, beside raw pixels and a perceptual hash."""

from featkit.evaluate.copies import CopiesReport, CopyProbe, MethodScore, evaluate_copies

__all__ = ["CopiesReport", "CopyProbe", "MethodScore", "evaluate_copies"]

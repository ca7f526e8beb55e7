"""The report of a training run: report.html, made of what the run folder holds. Needs no torch."""

from featkit_train.report.page import write_report

__all__ = ["write_report"]

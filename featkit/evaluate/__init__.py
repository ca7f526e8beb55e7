"""Measure a model with labels, with groups or without either, and check that engines agree."""

from featkit.evaluate.agreement import Agreement, compare_runs
from featkit.evaluate.all import Choices, Material, evaluate_all
from featkit.evaluate.all_report import AllReport, Difference, Figure, Row
from featkit.evaluate.all_table import markdown
from featkit.evaluate.copies import CopiesReport, CopyProbe, MethodScore, evaluate_copies
from featkit.evaluate.ground_truth import GroundTruth, read_ground_truth
from featkit.evaluate.groups import GroupReport, GroupScore, evaluate_groups
from featkit.evaluate.knn import KnnReport, KnnScore, evaluate_knn, knn_accuracy
from featkit.evaluate.linear import LinearReport, LinearScore, evaluate_linear
from featkit.evaluate.revisited import RevisitedReport, RevisitedScore, evaluate_revisited

__all__ = [
    "Agreement",
    "AllReport",
    "Choices",
    "CopiesReport",
    "CopyProbe",
    "Difference",
    "Figure",
    "GroundTruth",
    "GroupReport",
    "GroupScore",
    "KnnReport",
    "KnnScore",
    "LinearReport",
    "LinearScore",
    "Material",
    "MethodScore",
    "RevisitedReport",
    "RevisitedScore",
    "Row",
    "compare_runs",
    "evaluate_all",
    "evaluate_copies",
    "evaluate_groups",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_revisited",
    "knn_accuracy",
    "markdown",
    "read_ground_truth",
]

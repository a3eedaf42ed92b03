"""Predictions, scores, tables and figures of a trained model, independent of training."""

from udas_fast.evaluation.figure import (
    colorize,
    comparison_figure,
    pseudo_label_figure,
    save_figure,
    validation_figure,
)
from udas_fast.evaluation.metrics import Protocol, Scores, read_scores
from udas_fast.evaluation.prediction import predict
from udas_fast.evaluation.scoring import evaluate, evaluate_dataset, evaluating
from udas_fast.evaluation.table import aligned_table, mean_notes, scores_table

__all__ = [
    "Protocol",
    "Scores",
    "aligned_table",
    "colorize",
    "comparison_figure",
    "evaluate",
    "evaluate_dataset",
    "evaluating",
    "mean_notes",
    "predict",
    "pseudo_label_figure",
    "read_scores",
    "save_figure",
    "scores_table",
    "validation_figure",
]

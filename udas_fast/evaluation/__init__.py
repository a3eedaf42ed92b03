"""Predictions, scores, tables and figures of a trained model, independent of training."""

from udas_fast.evaluation.by_image import draw_images, image_scores, worst_images, write_image_scores
from udas_fast.evaluation.calibration import Reliability
from udas_fast.evaluation.figure import (
    colorize,
    comparison_figure,
    mixed_figure,
    pseudo_label_figure,
    save_figure,
    validation_figure,
)
from udas_fast.evaluation.metrics import Protocol, Scores, read_scores
from udas_fast.evaluation.prediction import image_logits, label_and_confidence, predict
from udas_fast.evaluation.scoring import evaluate, evaluate_dataset, evaluating
from udas_fast.evaluation.table import aligned_table, mean_notes, scores_table
from udas_fast.evaluation.temperature import fit_temperature

__all__ = [
    "Protocol",
    "Reliability",
    "Scores",
    "aligned_table",
    "colorize",
    "comparison_figure",
    "draw_images",
    "evaluate",
    "evaluate_dataset",
    "evaluating",
    "fit_temperature",
    "image_logits",
    "image_scores",
    "label_and_confidence",
    "mean_notes",
    "mixed_figure",
    "predict",
    "pseudo_label_figure",
    "read_scores",
    "save_figure",
    "scores_table",
    "validation_figure",
    "worst_images",
    "write_image_scores",
]

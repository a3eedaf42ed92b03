"""Evaluation by its definition: float64 NumPy, one pixel at a time."""

import numpy as np


def upsample(logits: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Interpolate bilinearly [C, h, w] to [C, H, W], pixel by pixel."""
    _, h, w = logits.shape
    out = np.empty((logits.shape[0], *size))

    def place(i: int, length: int, out_length: int) -> float:
        if align_corners:
            return i * (length - 1) / (out_length - 1) if out_length > 1 else 0.0
        return max((i + 0.5) * length / out_length - 0.5, 0.0)

    for y in range(size[0]):
        v = place(y, h, size[0])
        y0 = int(v)
        y1, b = min(y0 + 1, h - 1), v - y0
        for x in range(size[1]):
            u = place(x, w, size[1])
            x0 = int(u)
            x1, a = min(x0 + 1, w - 1), u - x0
            top = (1 - a) * logits[:, y0, x0] + a * logits[:, y0, x1]
            bottom = (1 - a) * logits[:, y1, x0] + a * logits[:, y1, x1]
            out[:, y, x] = (1 - b) * top + b * bottom
    return out


def confusion(prediction: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Count [true, predicted] over the pixels that are not 255."""
    matrix = np.zeros((classes, classes), np.int64)
    for truth, guess in zip(label.ravel(), prediction.ravel(), strict=True):
        if truth != 255:
            matrix[truth, guess] += 1
    return matrix


def iou(prediction: np.ndarray, label: np.ndarray, classes: int) -> list[float]:
    """Return the intersection over union of the two pixel sets of each class, NaN where both are empty."""
    valid = label != 255
    scores = []
    for c in range(classes):
        a, b = (label == c) & valid, (prediction == c) & valid
        union = (a | b).sum()
        scores.append((a & b).sum() / union if union else float("nan"))
    return scores

"""Figures of UDAS 4.3.1 and 4.3.2: GTA5 → Cityscapes, validation, in percent; single runs.

The ablation's figures are by title, the others by recipe and number of labels. The ablation's last row was trained
with labels. The table does not say how many; its mIoU equals that of all 2975 in 4.3.2.
"""

TASK = ("gta5", "cityscapes")

# In the order of Cityscapes' train ids; mIoU is the paper's own column.
ABLATION = {
    "No adaptation": (
        (
            *(83.9, 10.2, 74.3, 4.4, 3.0, 10.3, 11.8, 11.4, 84.2, 15.8),
            *(68.7, 39.0, 0.1, 79.1, 26.1, 17.3, 0.0, 2.7, 0.0),
        ),
        28.5,
    ),
    "UDA": (
        (
            *(83.9, 10.4, 77.2, 22.5, 2.8, 29.4, 4.1, 2.8, 84.2, 39.9),
            *(78.8, 31.9, 0.0, 83.0, 30.9, 4.2, 0.0, 0.0, 0.0),
        ),
        30.8,
    ),
    "ST": (
        (
            *(75.7, 16.7, 77.2, 12.5, 21.0, 25.4, 30.0, 20.1, 81.3, 24.6),
            *(70.3, 53.7, 26.4, 49.9, 17.1, 25.8, 6.4, 25.2, 36.0),
        ),
        36.6,
    ),
    "ST + UDA": (
        (
            *(89.4, 26.2, 82.7, 25.8, 22.9, 36.1, 40.4, 38.8, 84.1, 37.5),
            *(83.5, 59.0, 26.7, 83.6, 28.5, 36.6, 0.1, 14.6, 26.7),
        ),
        44.4,
    ),
    "ST + DA + SSL": (
        (
            *(95.4, 69.1, 87.7, 43.1, 41.3, 42.5, 46.7, 59.9, 88.4, 50.5),
            *(90.3, 68.9, 49.7, 90.2, 61.9, 65.8, 46.9, 44.2, 63.5),
        ),
        63.5,
    ),
}

LABELS = {
    "supervised": {2975: 69.1, 1000: 61.2, 500: 55.4, 100: 41.6},
    "udas": {2975: 63.5, 1000: 60.6, 500: 61.3, 100: 55.6, 0: 43.9},
    "ddm": {2975: 69.8, 1000: 66.6, 500: 64.3, 200: 60.5, 100: 61.2},  # DDM's own paper
}


def is_paper_task(source: str, target: str) -> bool:
    """Return whether ``source`` and ``target``, both ``KIND:ROOT``, are the paper's task."""
    return (source.partition(":")[0], target.partition(":")[0]) == TASK

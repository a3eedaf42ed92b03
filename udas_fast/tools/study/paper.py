"""Published figures beside ours, and the papers' numbers of labels: GTA5 or SYNTHIA → Cityscapes, in percent.

Those of UDAS (sections 4.2 and 4.3) are single runs on GTA5 → Cityscapes' validation images, by class in the order of
Cityscapes' train ids; mIoU is the paper's own column. Its ablation's last row was trained with labels. The table does
not say how many; its mIoU equals that of all 2975 in 4.3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCES, TARGET = ("gta5", "synthia"), "cityscapes"
ALL_LABELS = 2975
SIZE = (360, 640)  # (H, W) of all images after 4.2.1
# Numbers of labelled target images by study; methods: UDAS 4.3.1, whose last row has labels. `parts` is in no paper.
NUM_LABELS = {
    "labels": (ALL_LABELS, 1000, 500, 100, 0),
    "methods": (ALL_LABELS, 0),
    "ddm": (ALL_LABELS, 1000, 500, 200, 100),
    "parts": (100,),
}


@dataclass(frozen=True)
class Published:
    """Scores of a published row, in percent."""

    paper: str
    miou: float
    iou: tuple[float, ...] | None = None  # by class
    pixel_accuracy: float | None = None


# 4.2.1, UDA by size; the mean of the first row's classes, as the printed 42.35 is a slip.
SIZES = {
    "1280 × 720": (
        (
            *(89.1, 23.7, 82.4, 19.6, 20.2, 33.0, 42.4, 39.7, 85.3, 33.1),
            *(76.9, 60.5, 33.0, 85.7, 36.2, 43.6, 5.0, 22.3, 30.0),
        ),
        45.35,
    ),
    "640 × 360": (
        (
            *(83.9, 10.2, 74.3, 4.4, 3.0, 10.3, 11.8, 11.4, 84.2, 15.8),
            *(68.7, 39.0, 0.1, 79.1, 26.1, 17.3, 0.0, 2.7, 0.0),
        ),
        28.59,
    ),
}
# 4.2.2, by two digits, and the pixel accuracy.
NETWORKS = {
    "FCN": (
        (
            *(97.0, 81.0, 90.0, 26.0, 45.0, 54.0, 67.0, 75.0, 91.0, 53.0),
            *(93.0, 78.0, 57.0, 93.0, 48.0, 70.0, 36.0, 56.0, 75.0),
        ),
        68.03,
    ),
    "DeepLabV3+": (
        (
            *(98.0, 84.0, 92.0, 56.0, 59.0, 64.0, 70.0, 78.0, 92.0, 64.0),
            *(95.0, 81.0, 63.0, 94.0, 69.0, 76.0, 43.0, 63.0, 76.0),
        ),
        74.97,
    ),
}
PIXEL_ACCURACY = {"FCN": 94.693, "DeepLabV3+": 95.826}
# 4.2.3; building of the translated source is printed as 6.76, a slip.
GAP = {
    "Source": (
        (
            *(70.2, 19.3, 60.4, 23.3, 13.4, 25.3, 31.8, 17.0, 53.5, 24.3),
            *(85.6, 41.2, 1.7, 55.4, 19.1, 16.8, 2.4, 6.4, 5.4),
        ),
        30.1,
    ),
    "Source → target": (
        (
            *(80.7, 26.8, 67.6, 29.3, 13.6, 30.8, 26.2, 21.1, 61.2, 33.5),
            *(76.2, 47.6, 27.0, 63.0, 37.1, 15.8, 4.9, 18.2, 7.4),
        ),
        36.2,
    ),
    "Target": (
        (
            *(98.0, 84.5, 92.3, 56.0, 59.1, 64.6, 70.2, 78.9, 92.4, 64.0),
            *(95.0, 81.6, 63.2, 94.7, 69.0, 76.9, 43.3, 63.4, 76.5),
        ),
        74.9,
    ),
}
# 4.3.1.
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
# 4.3.1, by recipe: published methods without labels of the target.
METHODS = {
    "cycada": (
        (
            *(79.1, 33.1, 77.9, 23.4, 17.3, 32.1, 33.3, 31.8, 81.5, 26.7),
            *(69.0, 62.8, 14.7, 74.5, 20.9, 25.6, 6.9, 18.8, 20.4),
        ),
        39.5,
    ),
    "adaptsegnet": (
        (
            *(86.5, 36.0, 79.9, 23.4, 23.3, 23.9, 35.2, 14.8, 83.4, 33.3),
            *(75.6, 58.5, 27.6, 73.7, 32.5, 35.4, 3.9, 30.1, 28.1),
        ),
        42.4,
    ),
    "advent": (
        (
            *(89.4, 33.1, 81.0, 26.6, 26.8, 27.2, 33.5, 24.7, 83.9, 36.7),
            *(78.8, 58.7, 30.5, 84.8, 38.5, 44.5, 1.7, 31.6, 32.4),
        ),
        45.5,
    ),
    "seg_uncertainty": (
        (
            *(90.5, 35.0, 84.6, 34.3, 24.0, 36.8, 44.1, 42.7, 84.5, 33.6),
            *(82.5, 63.1, 34.4, 85.8, 32.9, 38.2, 2.0, 27.1, 41.8),
        ),
        48.3,
    ),
}
# 4.2.2, DeepLabV2-ResNet101 on all labels.
SUPERVISED = (
    *(96.7, 76.2, 88.6, 47.2, 47.6, 45.1, 57.9, 67.6, 89.1, 58.2),
    *(90.4, 70.0, 54.8, 92.2, 71.8, 78.0, 56.6, 56.7, 67.8),
)
BY_TITLE = {"sizes": SIZES, "networks": NETWORKS, "gap": GAP, "ablation": ABLATION}
# Studies whose rows are variants of one recipe, and the titles of the published forms.
VARIED, TITLES = ("parts", "ddm"), ("Supervised", "UDAS", "DDM")
# mIoU by paper, recipe and number of labels.
LABELS = {
    "UDAS": {  # 4.3.2
        "supervised": {2975: 69.1, 1000: 61.2, 500: 55.4, 100: 41.6},
        "udas": {2975: 63.5, 1000: 60.6, 500: 61.3, 100: 55.6, 0: 43.9},
    },
    "DDM": {
        "supervised": {2975: 65.3, 1000: 58.6, 500: 55.5, 200: 47.7, 100: 41.9},
        "ddm": {2975: 69.8, 1000: 66.6, 500: 64.3, 200: 60.5, 100: 61.2},
    },
}
# The same of SYNTHIA → Cityscapes, over 13 classes.
SYNTHIA_LABELS = {
    "DDM": {
        "supervised": {2975: 72.2, 1000: 67.5, 500: 61.0, 200: 58.9, 100: 53.0},
        "ddm": {2975: 77.2, 1000: 74.2, 500: 71.7, 200: 69.8, 100: 68.4},
    },
}
# Seg-Uncertainty's 48.3 in UDAS 4.3.1 is that of its first network with plain pseudo-labels, which no recipe has.
SEG_UNCERTAINTY = (
    Published("first stage, its own paper", 45.5),
    Published("both stages, its own paper", 50.3),
)


def is_paper_task(source: str, target: str) -> bool:
    """Return whether ``source`` and ``target``, both ``KIND:ROOT``, are GTA5 → Cityscapes."""
    return _kinds(source, target) == ("gta5", TARGET)


def is_synthia(source: str, target: str) -> bool:
    """Return whether ``source`` and ``target`` are SYNTHIA → Cityscapes, which is scored over 16 and 13 classes."""
    return _kinds(source, target) == ("synthia", TARGET)


def on_published_task(source: str, target: str) -> bool:
    """Return whether a paper has figures of ``source`` → ``target``."""
    return is_paper_task(source, target) or is_synthia(source, target)


def _kinds(source: str, target: str) -> tuple[str, str]:
    return source.partition(":")[0], target.partition(":")[0]


def num_labels(study: str, source: str, target: str) -> tuple[int, ...]:
    """Return the numbers of labelled target images that ``study`` has in its paper; some on any other task."""
    if not on_published_task(source, target):
        return (50, 20, 0)
    return NUM_LABELS.get(study, (ALL_LABELS,))


def ddm_rounds(source: str, target: str, labels: int) -> int | None:
    """Return the rounds of DDM with so many labels, where its paper makes fewer than for GTA5."""
    if not on_published_task(source, target):
        return None
    if labels == ALL_LABELS:
        return 1
    return 3 if is_synthia(source, target) else None


def published(study: str, recipe: str, title: str, labels: int) -> list[Published]:
    """Return the published lines beside a row of a study on GTA5 → Cityscapes; ``title`` is without its labels."""
    if study in BY_TITLE:
        if recipe == "udas" and not labels:
            return [Published("UDAS paper, 0 labels", LABELS["UDAS"]["udas"][0])]
        if title not in BY_TITLE[study]:
            return []
        iou, miou = BY_TITLE[study][title]
        return [Published("UDAS paper", miou, iou, PIXEL_ACCURACY.get(title))]
    if study in VARIED and title not in TITLES:
        return []
    found: list[Published] = []
    if recipe in METHODS:
        iou, miou = METHODS[recipe]
        found.append(Published("UDAS paper", miou, iou))
    if recipe == "seg_uncertainty":
        found += SEG_UNCERTAINTY
    for name, recipes in LABELS.items():
        if (value := recipes.get(recipe, {}).get(labels)) is not None:
            found.append(Published(f"{name} paper", value, _by_class(name, recipe, labels)))
    return found


def _by_class(paper: str, recipe: str, labels: int) -> tuple[float, ...] | None:
    if (paper, labels) != ("UDAS", ALL_LABELS):
        return None
    return SUPERVISED if recipe == "supervised" else ABLATION["ST + DA + SSL"][0]

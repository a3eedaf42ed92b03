"""Rows of the studies: a recipe each, its number of labels, and what is changed of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from udas_fast.data.loader import AnyEngine
from udas_fast.errors import bad
from udas_fast.recipes import Changes, Recipe, all_recipes, get_recipe, load_recipe, override
from udas_fast.tools.study import paper
from udas_fast.tools.study.settings import reaching

Study: TypeAlias = Literal["sizes", "networks", "gap", "ablation", "labels", "methods", "ddm", "parts"]
STUDIES: tuple[Study, ...] = get_args(Study)

# Rows of the methods study, from the simplest to the whole; recipes that are not named here come last.
ORDER = (
    *("no_adaptation", "adaptsegnet_single", "adaptsegnet", "minent", "advent", "mrnet", "seg_uncertainty"),
    *("fda", "cycada", "uda", "dacs", "daformer", "mic", "vfm_uda", "supervised", "joint"),
    *("noisy_student", "meta_pseudo_labels", "vat", "uda_xie", "mixmatch", "fixmatch", "unimatch_v2"),
    *("udas", "udas_mrnet", "udas_tuned", "ddm", "online_self_training"),
)
# Groups of the methods study's table of costs, in its order; online methods of recent years are a group of their own.
GROUPS = ("source only", "UDA", "SSL", "SSDA", "front line")
FRONT_LINE = frozenset(
    {"dacs", "daformer", "mic", "vfm_uda", "fixmatch", "unimatch_v2", "online_self_training"}
)
# Recipes whose source is translated as the task says (True) or not at all (False), as in the other studies. All other
# recipes keep their own translation.
TRANSLATED = {
    "no_adaptation": False,
    "uda": False,
    "udas": True,
    "udas_mrnet": True,
    "udas_tuned": True,
    "supervised": False,
    "joint": False,
    "cycada": True,
}
NO_CYCADA = (
    "CyCADA is left out: it trains on images that CycleGAN has translated "
    "(`--translate cyclegan` or `translated:DIR`)"
)
NO_TRANSLATION = (
    "The translated source is left out: it takes images that are files "
    "(`--translate cyclegan` or `translated:DIR`)"
)
# UDAS 4.2.2, with its backbone.
NETWORKS = {"FCN": "fcn", "DeepLabV3+": "deeplabv3plus"}
# What `parts` takes away from UDAS, or does otherwise: title and settings. A row that changes nothing is not made.
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("UDAS without Domain CutMix", ("stages.*.objective.mixing=null",)),
    ("UDAS without AutoAugment of mixed images", ("stages.*.objective.mixing.augment=none",)),
    ("UDAS without L_kl", ("stages.adaptation.objective.agreement=null",)),
    ("UDAS without adversary", ("stages.adaptation.objective.adversary=null",)),
    (
        "UDAS without consistency",
        (
            "stages.self_training.objective.consistency=null",
            "stages.self_training.objective.label_consistency_weight=0",
        ),
    ),
    ("UDAS, first view only", ("stages.self_training.objective.pseudo_labels.views=[identity]",)),
    ("UDAS, mean over views", ("stages.self_training.objective.pseudo_labels.reduce=mean",)),
    ("UDAS without threshold", ("stages.self_training.objective.pseudo_labels.threshold=0",)),
    *(
        (
            f"UDAS, {paste} in the box, {'in place of' if replaces else 'beside'} the source",
            (
                f"stages.*.objective.mixing.paste={paste}",
                f"stages.*.objective.mixing.replace={json.dumps(replaces)}",
            ),
        )
        for paste in ("source", "target")
        for replaces in (True, False)
    ),
)


@dataclass(frozen=True)
class Task:
    """Datasets and options that all runs of a study share."""

    source: str  # KIND:ROOT
    target: str
    translate: str = "lab"  # a value of an objective's translate, or translated:DIR, a source in its place
    changes: Changes = field(default_factory=Changes)  # of the size, length, … of every recipe
    # KEY=VALUE goes to the recipes that have the key, RECIPE[,RECIPE]:KEY=VALUE to these recipes.
    settings: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()  # files of recipes that join the package's in the methods study
    engine: AnyEngine = "auto"
    weights: str | None = None
    device: str = "auto"
    makes_translation: bool = False  # the study makes translated:DIR before its runs, by CycleGAN

    @property
    def translation(self) -> str:
        """``none``, ``lab``, …, or ``translated`` where the source is a folder of translated images."""
        return self.translate.partition(":")[0]


@dataclass(frozen=True)
class StudyRow:
    """One line of a study's table: a recipe, its number of labels, and whether the source is translated."""

    title: str
    recipe: str
    num_labels: int = 0
    translated: bool | None = False  # True: as the task says; None: as the recipe says
    file: str | None = None  # of the recipe, where it is not the package's
    target: str | None = None  # KIND:ROOT, where it is not the task's
    settings: tuple[str, ...] = ()  # KEY=VALUE of the recipe, after those of the task
    stages: tuple[str, ...] = ()  # names of the only stages that are trained; empty: all
    scored_on: str | None = None  # KIND:ROOT whose training images score it; None: the target's validation

    @cached_property
    def own_recipe(self) -> Recipe:
        """The recipe with its own numbers."""
        return get_recipe(self.recipe) if self.file is None else load_recipe(Path(self.file))


def study_rows(study: Study, task: Task, counts: Sequence[int]) -> tuple[tuple[StudyRow, ...], str]:
    """Return the rows of ``study`` in its table's order, and a sentence about one that is left out.

    ``counts`` are numbers of labelled target images: the ablation, networks, gap and parts take the first, sizes none.

    Raises:
        InputError: an ablation without a translation, numbers of labels that the study cannot take, one size, or a
            recipe's file that cannot join.
    """
    translated = task.translation == "translated"
    if study == "sizes":
        return _sizes(task), ""
    if study == "networks":
        return tuple(_network(title, _labelled(study, counts)[0]) for title in NETWORKS), ""
    if study == "gap":
        return _gap(task, _labelled(study, counts)[0]), "" if translated else NO_TRANSLATION
    if study == "ablation":
        return _ablation(task, counts[0]), ""
    if study == "labels":
        return _labels(task, counts), ""
    if study == "methods":
        return _methods(task, counts), NO_CYCADA if 0 in counts and not translated else ""
    if study == "ddm":
        return _ddm(task, _labelled(study, counts)), ""
    return _parts(task, counts[0]), ""


def _labelled(study: Study, counts: Sequence[int]) -> list[int]:
    """Return the numbers of labels that are not 0; raise InputError where there is none."""
    found = [n for n in counts if n]
    if not found:
        raise bad("--num-labels", 0, f"a number from 1 in the {study} study")
    return found


def _sizes(task: Task) -> tuple[StudyRow, ...]:
    """Return UDA at the recipe's own size, and at --size, or half of its own (UDAS 4.2.1)."""
    recipe = get_recipe("uda")
    changes = task.changes.for_recipe(recipe)
    height, width = replace(changes, size=None).apply(recipe).input.source.size
    smaller = changes.size or (height // 2, width // 2)
    if smaller == (height, width):
        raise bad("--size", f"{height}x{width}", "another one than the recipe's own in the sizes study")
    given = changes.apply(recipe).input
    rows = []
    for size in (None, smaller):
        inputs = replace(changes, size=size).apply(recipe).input
        settings = []
        for domain in ("source", "target"):
            before, after = asdict(getattr(given, domain)), asdict(getattr(inputs, domain))
            settings += [
                f"input.{domain}.{key}={json.dumps(value, separators=(',', ':'))}"
                for key, value in after.items()
                if value != before[key]
            ]
        title = f"{inputs.source.size[1]} × {inputs.source.size[0]}"
        rows.append(StudyRow(title, "uda", settings=tuple(settings)))
    return tuple(rows)


def _network(title: str, num_labels: int) -> StudyRow:
    """Return a network of UDAS 4.2.2, trained on labelled target images alone."""
    settings = ("model.backbone=resnet50", f"model.head={NETWORKS[title]}")
    return StudyRow(title, "supervised", num_labels, settings=settings)


def _gap(task: Task, num_labels: int) -> tuple[StudyRow, ...]:
    """Return one network of the target, scored on the source, the translated source and the target (UDAS 4.2.3)."""
    network = _network("DeepLabV3+", num_labels)
    rows = [replace(network, title="Source", scored_on=task.source)]
    if task.translation == "translated":
        rows.append(replace(network, title="Source → target", scored_on=task.translate))
    return (*rows, replace(network, title="Target"))


def _ablation(task: Task, num_labels: int) -> tuple[StudyRow, ...]:
    """Return the rows of UDAS 4.3.1, its last one, which trains on labelled target images, without labels too.

    Before it comes the baseline that has the same labels.
    """
    if task.translate == "none":
        raise bad("--translate", "none", "a translation, which the rows ST of the ablation measure")
    whole = StudyRow("ST + DA + SSL, 0 labels", "udas", translated=True)
    rows = (
        StudyRow("No adaptation", "no_adaptation"),
        StudyRow("UDA", "uda"),
        StudyRow("ST", "no_adaptation", translated=True),
        StudyRow("ST + UDA", "uda", translated=True),
        whole,
    )
    if not num_labels:
        return rows
    joint = _row(task, get_recipe("joint").title, "joint", num_labels)
    return (*rows, joint, replace(whole, title=f"ST + DA + SSL, {num_labels} labels", num_labels=num_labels))


def _labels(task: Task, counts: Sequence[int]) -> tuple[StudyRow, ...]:
    """Return the rows of UDAS 4.3.2, of Joint and of online self-training, most labels first.

    The baselines have no row without labels.
    """
    counts = sorted(counts, reverse=True)
    rows = []
    for name in ("supervised", "joint", "udas", "online_self_training"):
        recipe = get_recipe(name)
        rows += [_row(task, recipe.title, name, n) for n in counts if _trains_with(recipe, n)]
    return tuple(row if row.num_labels else replace(row, title=f"{row.title}, 0 labels") for row in rows)


def _methods(task: Task, counts: Sequence[int]) -> tuple[StudyRow, ...]:
    """Return a row for each method and each number of labels that it can train with.

    The recipes in :data:`ORDER` come first: all without labels, then all with the most labels, and so on. Each other
    recipe follows with its rows.
    """
    recipes = _candidates(task.recipes)
    if task.translation != "translated":
        recipes.pop("cycada", None)
    known = [recipes[name] for name in ORDER if name in recipes]
    others = [each for name, each in recipes.items() if name not in ORDER]
    descending = sorted(counts, reverse=True)
    pairs = [(each, n) for n in sorted(descending, key=bool) for each in known]
    pairs += [(each, n) for each in others for n in descending]
    titles = _titles([recipe for recipe, _ in (*known, *others)])
    return tuple(
        _row(task, titles[recipe.name], recipe.name, n, file)
        for (recipe, file), n in pairs
        if _trains_with(recipe, n)
    )


def _ddm(task: Task, counts: Sequence[int]) -> tuple[StudyRow, ...]:
    """Return Supervised and DDM, most labels first, and DDM's two ablations with the fewest labels.

    The ablations: one teacher instead of both, and no style of the target in the source.
    """
    counts = sorted(counts, reverse=True)
    fewest = counts[-1]
    title = get_recipe("ddm").title
    rows = [
        _row(task, get_recipe(name).title, name, n) for name in ("supervised", "ddm") for n in counts if n
    ]
    whole = _row(task, title, "ddm", fewest)
    for level, other in (("region", "sample"), ("sample", "region")):
        first, *names = whole.stages or [stage.name for stage in whole.own_recipe.stages]
        # The first stage stays, as a run of later ones has to start from another run.
        rows.append(
            replace(
                whole,
                title=f"{title} with the {level}-level teacher alone, {fewest} labels",
                settings=(f"stages.*.objective.teachers=[{level}]",),
                stages=(first, *(name for name in names if not name.startswith(other))),
            )
        )
    rows.append(
        replace(
            whole,
            title=f"{title} without style transfer, {fewest} labels",
            settings=("stages.*.objective.translate=none",),
        )
    )
    return tuple(rows)


def _parts(task: Task, num_labels: int) -> tuple[StudyRow, ...]:
    """Return UDAS and a row for each of :data:`PARTS`, and for self-training of one round with the steps of all."""
    whole = replace(
        _row(task, get_recipe("udas").title, "udas", num_labels), title=f"UDAS, {num_labels} labels"
    )
    udas = whole.own_recipe
    recipe = override(task.changes.for_recipe(udas).apply(udas), reaching(task.settings, udas))
    (stage,) = (stage for stage in recipe.stages if stage.name == "self_training")
    once = (
        "stages.self_training.rounds=1",
        f"stages.self_training.steps={stage.steps * stage.rounds}",
    )
    parts = (*PARTS, ("UDAS, self-training in one round", once))
    return (
        whole,
        *(
            replace(whole, title=f"{title}, {num_labels} labels", settings=settings)
            for title, settings in parts
        ),
    )


def _row(task: Task, title: str, recipe: str, num_labels: int, file: str | None = None) -> StudyRow:
    title = f"{title}, {num_labels} labels" if num_labels else title
    stages = _ddm_stages(task, num_labels) if recipe == "ddm" else ()
    return StudyRow(title, recipe, num_labels, TRANSLATED.get(recipe), file, stages=stages)


def _ddm_stages(task: Task, num_labels: int) -> tuple[str, ...]:
    """Return DDM's stages of the rounds that its paper makes; empty: of all, as for GTA5.

    Where the steps are given, all rounds share them, as in the other rows.
    """
    rounds = paper.ddm_rounds(task.source, task.target, num_labels)
    if rounds is None or task.changes.small is not None or task.changes.steps is not None:
        return ()
    stages = get_recipe("ddm").stages
    return tuple(stage.name for stage in stages if int(stage.name.rpartition("_")[2]) <= rounds)


def group_of(recipe: Recipe, num_labels: int) -> str:
    """Return the group in :data:`GROUPS` of a recipe that trains with so many labelled target images."""
    needs, uses = recipe.streams
    if recipe.name in FRONT_LINE:
        return "front line"
    if "source" not in needs:
        return "SSL"
    if num_labels:
        return "SSDA"
    return "UDA" if "unlabelled" in needs | uses else "source only"


def _titles(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return a title for each recipe; a copy that kept the title of an earlier one goes by its name."""
    found: dict[str, str] = {}
    for recipe in recipes:
        taken = recipe.title in ("", *found.values())
        found[recipe.name] = title = recipe.name if taken else recipe.title
        if list(found.values()).count(title) > 1:
            raise bad(
                f"recipe {recipe.name}", f"the title {title!r} of another recipe", "a `name` of its own"
            )
    return found


def _trains_with(recipe: Recipe, num_labels: int) -> bool:
    """Return whether the recipe trains with so many labelled target images: it needs, uses or never sees them."""
    needs, uses = recipe.streams
    return "labelled" in needs | uses if num_labels else "labelled" not in needs


def _candidates(files: Sequence[str]) -> dict[str, tuple[Recipe, str | None]]:
    """Return (recipe, its file) of all recipes for segmentation, and of those in ``files``, by name."""
    found: dict[str, tuple[Recipe, str | None]] = {
        name: (recipe, None) for name, recipe in all_recipes().items() if recipe.trains == "segmentation"
    }
    for file in files:
        recipe = load_recipe(Path(file))
        if recipe.trains != "segmentation":
            raise bad(f"--recipe {file}", f"one that trains {recipe.trains}", "one for segmentation")
        if recipe.name in found:
            raise bad(
                f"--recipe {file}", f"the name {recipe.name!r} of another recipe", "a `name` of its own"
            )
        found[recipe.name] = recipe, file
    return found

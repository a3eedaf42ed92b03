"""Formats that users describe by a ``dataset.yaml``, CVAT's ``labelmap.txt`` or ``classes.txt`` in a folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from udas_fast.config import load_yaml
from udas_fast.data.classes import IGNORE, ClassSet, make_class_set
from udas_fast.data.labels import HIGHEST_ID, hexadecimal
from udas_fast.data.layout import Layout, wildcards
from udas_fast.data.specs import BY_SPLIT, DatasetSpec
from udas_fast.errors import InputError, bad, first_line, unknown

FILE = "dataset.yaml"
PRESET_FOLDER = Path(__file__).with_name("presets")
PRESETS = tuple(sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml")))
"""Public datasets whose format is a file of the same form."""
KEYS = ("images", "labels", "splits", "ignore", "classes")
LAYOUTS = (BY_SPLIT, Layout("{split}/images", "{split}/labels"))
CVAT_LAYOUT = Layout("JPEGImages", "SegmentationClass")
CVAT_LISTS = "ImageSets/Segmentation"

Value = int | str
"""An id, or a colour as ``#rrggbb``."""


def folder_spec(root: Path) -> DatasetSpec:
    """Return the format of a folder: that of its dataset.yaml, or the classes of its classes.txt or labelmap.txt.

    Without a dataset.yaml images are in images/SPLIT and labels in labels/SPLIT, or in SPLIT/images and SPLIT/labels.

    Raises:
        InputError: none of the files is there, or one is wrong.
    """
    if (path := root / FILE).is_file():
        _require_inside(path, root)
        return read_format(path, "folder", root)
    return _classes_in(root, "folder", LAYOUTS)


def _require_inside(path: Path, root: Path) -> None:
    """Raise InputError for a link out of a folder: a dataset from elsewhere could have any file read and shown."""
    if path.is_symlink() and root.resolve() not in path.resolve().parents:
        raise bad(str(path), f"a link to {path.resolve()}", "a file in the folder of the dataset")


def preset_spec(name: str, root: Path) -> DatasetSpec:
    """Return the format of one of :data:`PRESETS` in the folder ``root``."""
    return read_format(PRESET_FOLDER / f"{name}.yaml", name, root)


def read_format(path: Path, name: str, root: Path) -> DatasetSpec:
    """Read the format of dataset ``name`` in the folder ``root`` from a dataset.yaml.

    Raises:
        InputError: names the file and the first wrong key.
    """
    document = read_mapping(path, f"{', '.join(KEYS)} as keys")
    for key in document:
        if key not in KEYS:
            raise unknown(f"{path}: key", str(key), KEYS)
    layouts = _layouts(path, document)
    splits = _splits(path, document.get("splits", {}))
    fixed: tuple[str, ...] = ()
    if all("{split}" not in layout.images for layout in layouts):
        fixed = tuple(splits) or ("train",)
    if "classes" not in document:
        spec = _classes_in(root, name, layouts)
    else:
        spec = _spec_of(path, name, root, document, layouts)
    return DatasetSpec(
        name,
        spec.classes,
        spec.id_to_train_id,
        layouts,
        fixed,
        split_names=splits,
        colour_to_train_id=spec.colour_to_train_id,
    )


def read_mapping(path: Path, expected: str) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    try:
        document = load_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise bad(str(path), (error.strerror or str(error)).lower(), expected) from error
    except UnicodeDecodeError as error:
        raise bad(str(path), "bytes that are not UTF-8", expected) from error
    except ValueError as error:
        raise InputError(f"{path}: no YAML ({first_line(error)})") from error
    if not isinstance(document, dict):
        raise bad(str(path), type(document).__name__, expected)
    return document


def _layouts(path: Path, document: Mapping[str, Any]) -> tuple[Layout, ...]:
    if not {"images", "labels"} & document.keys():
        return LAYOUTS
    layout = Layout(document.get("images", BY_SPLIT.images), document.get("labels", BY_SPLIT.labels))
    for key, pattern in (("images", layout.images), ("labels", layout.labels)):
        thing = f"{path}: {key}"
        if not isinstance(pattern, str) or not pattern:
            raise bad(thing, repr(pattern)[:60], 'a pattern such as "images/{split}/{id}"')
        if PurePosixPath(pattern).is_absolute() or ".." in PurePosixPath(pattern).parts:
            raise bad(thing, pattern, "a path below the folder of the file")
        names = re.findall(r"\{([^}]*)\}", pattern)
        if other := [name for name in names if name not in ("split", "id")]:
            raise bad(thing, f"{{{other[0]}}}", "{split} and {id} only")
        if names.count("id") > 1 or ("{id}" in pattern and "{id}" not in PurePosixPath(pattern).name):
            raise bad(thing, pattern, "{id} once, in the name of the file")
    if wildcards(layout.labels) > wildcards(layout.images):
        raise bad(f"{path}: labels", layout.labels, f"no more wildcards than in images, {layout.images:.200}")
    return (layout,)


def _splits(path: Path, splits: object) -> dict[str, str]:
    expected = "names of folders or of lists of ids (.txt), such as {val: valid, train: train.txt}"
    if not isinstance(splits, dict):
        raise bad(f"{path}: splits", repr(splits)[:60], expected)
    for split, place in splits.items():
        if not isinstance(split, str) or not isinstance(place, str) or not place:
            raise bad(f"{path}: splits", f"{split!r}: {place!r}"[:60], expected)
    return dict(splits)


def _spec_of(
    path: Path, name: str, root: Path, document: Mapping[str, Any], layouts: tuple[Layout, ...]
) -> DatasetSpec:
    """Return the format whose classes and ignored values are those of a dataset.yaml."""
    classes = document["classes"]
    if not isinstance(classes, dict):
        expected = "names and their ids or colours, such as {road: 7, vehicle: [26, '#0000e6']}"
        raise bad(f"{path}: classes", type(classes).__name__, expected)
    values: dict[str, list[Value]] = {}
    pictures: dict[str, str] = {}
    for class_name, entry in classes.items():
        thing = f"{path}: class {class_name!r}"
        if not isinstance(class_name, str):
            raise bad(thing, type(class_name).__name__, "a name; quote what YAML takes for something else")
        if isinstance(entry, dict):
            for key in entry:
                if key not in ("ids", "colour"):
                    raise unknown(f"{thing}: key", str(key), ("ids", "colour"))
            if "colour" in entry:
                pictures[class_name] = _colour(thing, entry["colour"])
            entry = entry.get("ids", [])
        values[class_name] = _values(thing, entry)
        if not values[class_name]:
            raise bad(thing, "no id", "one or more ids or colours")
    every = [value for one in values.values() for value in one]
    ignored = _values(f"{path}: ignore", document.get("ignore", [] if IGNORE in every else [IGNORE]))
    ids, colours = _tables(path, values, ignored)
    made = make_class_set(f"{path}: classes", root.resolve().name, tuple(values))
    palette = tuple(
        _rgb(
            pictures.get(n)
            or next((v for v in values[n] if isinstance(v, str)), hexadecimal(made.palette[i]))
        )
        for i, n in enumerate(made.names)
    )
    return DatasetSpec(
        name, ClassSet(made.name, made.names, palette), ids, layouts, colour_to_train_id=colours
    )


def _tables(
    path: Path, values: Mapping[str, list[Value]], ignored: list[Value]
) -> tuple[dict[int, int], dict[int, int]]:
    """Return train ids by id and by colour; raise InputError for a value of two classes."""
    owner: dict[Value, str] = {}
    for name, one in [*values.items(), ("ignore", ignored)]:
        for value in one:
            if value in owner:
                raise bad(f"{path}: {value}", f"it in {owner[value]} and in {name}", "each in one place")
            owner[value] = name
    numbers = {name: i for i, name in enumerate(values)}
    if "ignore" not in values:
        numbers["ignore"] = IGNORE
    ids = {value: numbers[name] for value, name in owner.items() if isinstance(value, int)}
    colours = {int(value[1:], 16): numbers[name] for value, name in owner.items() if isinstance(value, str)}
    return ids, colours


def _values(thing: str, entry: object) -> list[Value]:
    return [
        _colour(thing, value) if isinstance(value, str) else _id(thing, value)
        for value in (entry if isinstance(entry, list) else [entry])
    ]


def _id(thing: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= HIGHEST_ID:
        raise bad(thing, repr(value)[:60], f"ids from 0 to {HIGHEST_ID}, or colours such as '#0000e6'")
    return value


def _colour(thing: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        raise bad(thing, repr(value)[:60], "a colour such as '#0000e6', in quotes")
    return value.lower()


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _classes_in(root: Path, name: str, layouts: tuple[Layout, ...]) -> DatasetSpec:
    """Return the format whose classes are those of classes.txt, or of CVAT's labelmap.txt."""
    readers: dict[str, Callable[[Path, str, tuple[Layout, ...]], DatasetSpec]] = {
        "classes.txt": _read_classes,
        "labelmap.txt": _read_labelmap,
    }
    for file, read in readers.items():
        if (path := root / file).is_file():
            _require_inside(path, root)
            return read(path, name, layouts)
    expected = f"one class name per line there, the first is id 0; or {FILE} or CVAT's labelmap.txt"
    raise bad("plain image folder", f"no file {root / 'classes.txt'}", expected)


def _read_classes(path: Path, name: str, layouts: tuple[Layout, ...]) -> DatasetSpec:
    """Read classes.txt: the id of a class is its line number, from 0; 255 is ignored."""
    names = tuple(line.strip() for line in _text(path, "one class name per line").rstrip().splitlines())
    classes = make_class_set(str(path), path.parent.resolve().name, names)
    ids = {**{i: i for i in range(len(names))}, IGNORE: IGNORE}
    return DatasetSpec(name, classes, ids, layouts)


def _read_labelmap(path: Path, name: str, layouts: tuple[Layout, ...]) -> DatasetSpec:
    """Read CVAT's labelmap.txt, ``label:color_rgb:parts:actions``; its own folders and lists are read too."""
    expected = "lines such as road:128,64,128::"
    colours: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(_text(path, expected).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(.+?):(\d{1,3}),(\d{1,3}),(\d{1,3})(:.*)?", line.strip())
        if match is None or max(map(int, match.groups()[1:4])) > 255:
            raise bad(f"{path}: line {number}", repr(line)[:60], expected)
        if match[1] in colours:
            raise bad(f"{path}: line {number}", f"the class {match[1]!r} twice", "different class names")
        colours[match[1]] = int(match[2]), int(match[3]), int(match[4])
    made = make_class_set(str(path), path.parent.resolve().name, tuple(colours))
    codes: dict[int, int] = {}
    for i, (class_name, (r, g, b)) in enumerate(colours.items()):
        if codes.setdefault(r << 16 | g << 8 | b, i) != i:
            raise bad(f"{path}: {class_name}", f"colour {r},{g},{b} of another class", "different colours")
    lists = {p.stem: f"{CVAT_LISTS}/{p.name}" for p in sorted((path.parent / CVAT_LISTS).glob("*.txt"))}
    return DatasetSpec(
        name,
        ClassSet(made.name, made.names, tuple(colours.values())),
        {},
        (*layouts, CVAT_LAYOUT) if layouts == LAYOUTS else layouts,
        split_names=lists if layouts == LAYOUTS else {},
        colour_to_train_id=codes,
    )


def _text(path: Path, expected: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise bad(str(path), "bytes that are not UTF-8", expected) from error

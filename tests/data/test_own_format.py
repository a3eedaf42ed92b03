"""Formats of the user's own: label files of every lossless kind, dataset.yaml, CVAT's labelmap.txt, other layouts."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import Geometry, TrainLoader, check_dataset, has_labels, open_dataset, unmatched_labels
from udas_fast.data.labelled import select_labelled
from udas_fast.data.labels import IdMap, read_ids, read_label
from udas_fast.errors import InputError

IDS = np.random.default_rng(0).integers(0, 3, (10, 14), dtype=np.uint8)
COLOURS = np.array([(0, 0, 0), (128, 64, 128), (0, 0, 230)], np.uint8)
ENGINES = ["torch", pytest.param("dali", marks=pytest.mark.dali)]


def save(root: Path, name: str, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def write(root: Path, text: str, images: str, labels: str, pixels: np.ndarray | Image.Image = IDS) -> Path:
    """Write two images and labels, whose names are patterns of a number, and the dataset.yaml ``text``."""
    for i in range(2):
        save(root, images.format(i), np.full((10, 14, 3), 40 * i, np.uint8))
        save(root, labels.format(i), pixels)
    (root / "dataset.yaml").write_text(text)
    return root


def grey_png(ids: np.ndarray, depth: int) -> bytes:
    """Encode a PNG of grey of 1, 2 or 4 bits."""
    bits = np.unpackbits(ids[..., None], axis=2)[..., 8 - depth :].reshape(len(ids), -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], depth, 0, 0, 0, 0)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out += (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )
    return out


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_grey_of_few_bits_keeps_its_ids(tmp_path: Path, depth: int) -> None:
    ids = (np.arange(30, dtype=np.uint8) % (1 << depth)).reshape(5, 6)
    (tmp_path / "a.png").write_bytes(grey_png(ids, depth))
    assert np.array_equal(read_ids(tmp_path / "a.png"), ids)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.png", lambda ids: Image.fromarray(np.stack([ids, np.full_like(ids, 9)], -1), "LA")),
        ("a.png", lambda ids: Image.fromarray(np.stack([ids] * 3 + [np.full_like(ids, 9)], -1))),
        ("a.png", lambda ids: Image.fromarray(np.stack([ids] * 3, -1))),
        ("a.tif", Image.fromarray),
        ("a.tiff", lambda ids: Image.fromarray(ids.astype(np.uint16))),
        ("a.tif", lambda ids: Image.fromarray(ids.astype(np.int32))),
        ("a.tif", lambda ids: Image.fromarray(ids == 1)),
        ("a.bmp", Image.fromarray),
        ("a.bmp", lambda ids: Image.fromarray(np.stack([ids] * 3, -1))),
    ],
)
def test_ids_of_every_lossless_kind(tmp_path: Path, name: str, make: Callable[..., Image.Image]) -> None:
    image = make(IDS)
    path = save(tmp_path, name, image)
    if image.mode == "1":
        assert np.array_equal(read_ids(path), IDS == 1)
    else:
        assert np.array_equal(read_label(path, IdMap({0: 2, 1: 0, 2: 1})), np.array([2, 0, 1], np.uint8)[IDS])


def test_colours_without_a_declaration_are_asked_about(tmp_path: Path) -> None:
    path = save(tmp_path, "a.png", COLOURS[IDS])
    with pytest.raises(InputError) as refused:
        read_label(path, IdMap({0: 0, 1: 1}))
    assert str(refused.value) == (
        f"label {path}: found colours (#000000, #0000e6, #804080), expected ids, or the classes of these colours in a "
        "dataset.yaml beside the images (docs/own-data.md)"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_colour_masks_merged_and_ignored_classes_and_names(tmp_path: Path, engine: str) -> None:
    text = """
        images: "photos/{split}"
        labels: "masks/{split}/{id}_mask.png"
        splits: {val: valid}
        ignore: "#000000"
        classes:
          road: "#804080"
          vehicle: ["#0000e6", "#000046"]
    """
    root = write(tmp_path, text, "photos/train/IMG_{}.JPG", "masks/train/IMG_{}_mask.PNG", COLOURS[IDS])
    dataset = open_dataset(f"folder:{root}", "train")
    expected = np.array([255, 0, 1], np.uint8)[IDS]
    assert dataset.classes.names == ("road", "vehicle")
    assert dataset.classes.palette == ((128, 64, 128), (0, 0, 230))
    assert [sample.id for sample in dataset] == ["IMG_0", "IMG_1"]
    assert all(np.array_equal(sample.label, expected) for sample in dataset)
    geometry = Geometry(size=(10, 14), crop=(12, 20))
    batch = next(iter(TrainLoader(dataset, geometry, 2, 0, "x", engine=engine).batches()))
    ((top, left),) = {g.start for g in batch.geometries[:1]}
    part = batch.label[0, max(-top, 0) : 10 - top, max(-left, 0) : 14 - left].numpy()
    assert np.isin(batch.label.numpy(), [0, 1, 255]).all()
    assert (part[: 10 - max(top, 0), : 14 - max(left, 0)] == expected[max(top, 0) :, max(left, 0) :]).all()
    assert not has_labels(f"folder:{root}", "val")
    save(root, "photos/valid/a.png", IDS)
    save(root, "masks/valid/a_mask.png", COLOURS[IDS])
    assert has_labels(f"folder:{root}", "val")
    assert len(open_dataset(f"folder:{root}", "val")) == 1


def test_an_unknown_colour_names_its_pixels_and_the_nearest(tmp_path: Path) -> None:
    pixels = COLOURS[IDS]
    pixels[3, 3:6] = (0, 0, 229)
    pixels[5, 5] = (9, 9, 9)
    text = 'classes: {a: "#000000", b: "#804080", c: "#0000e6"}'
    root = write(tmp_path, text, "images/train/{}.png", "labels/train/{}.png", pixels)
    with pytest.raises(InputError) as refused:
        open_dataset(f"folder:{root}", "train")[0]
    assert str(refused.value) == (
        f"label {root}/labels/train/0.png: found colour #0000e5 in 3 pixels and 1 other unknown colours, expected "
        "declared colours, #0000e6 being the nearest: smoothed edges or a mask that was a JPEG are the usual cause; "
        "else add it to a class or to ignore"
    )


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("classes", "values"),
    [
        ("{a: 1, b: 2, c: 3}", [1, 2, 3]),  # off by one
        ("{a: 1000, b: 40000, c: 7}", [1000, 40000, 7]),  # sparse
        ("{a: 0, b: 255, c: 7}", [0, 255, 7]),  # an object of id 255
        ("{a: [0, '#0a0b0c'], b: {ids: 4, colour: '#010203'}, c: 5}", [0, 4, 5]),
    ],
)
def test_ids_are_those_that_are_declared(
    tmp_path: Path, classes: str, values: list[int], engine: str
) -> None:
    pixels = np.array(values, np.uint16)[IDS]
    pixels = pixels.astype(np.uint8) if max(values) < 256 else pixels
    root = write(tmp_path, f"classes: {classes}", "images/train/{}.png", "labels/train/{}.png", pixels)
    dataset = open_dataset(f"folder:{root}", "train")
    assert np.array_equal(dataset[0].label, IDS)
    loader = TrainLoader(dataset, Geometry(size=(10, 14)), 1, 0, "x", engine=engine)
    assert np.array_equal(next(iter(loader.batches())).label[0], IDS)
    padded = TrainLoader(dataset, Geometry(size=(10, 14), crop=(12, 20)), 1, 0, "x", engine=engine)
    assert set(np.unique(next(iter(padded.batches())).label)) == {0, 1, 2, 255}
    if "colour" in classes:
        assert dataset.classes.palette[1] == (1, 2, 3)
        assert dataset.classes.palette[0] == (10, 11, 12)


def test_palettes_are_colours_where_no_id_is_declared(tmp_path: Path) -> None:
    image = Image.fromarray(IDS).convert("L")
    image.putpalette(COLOURS.ravel().tolist())
    text = 'ignore: [0, "#000000"]\nclasses: {a: "#804080", b: "#0000e6"}'
    root = write(tmp_path, text, "images/train/{}.png", "labels/train/{}.png", image)
    expected = np.array([255, 0, 1], np.uint8)[IDS]
    assert np.array_equal(open_dataset(f"folder:{root}", "train")[0].label, expected)


def test_sub_folders_and_lists_of_images(tmp_path: Path) -> None:
    text = """
        images: "{split}/*/rgb/{id}_rgb"
        labels: "gt/{split}/*/{id}_gt"
        splits: {val: lists/val.txt}
        classes: {a: 0, b: 1, c: 2}
    """
    root = write(tmp_path, text, "train/cam{0}/rgb/{0}_rgb.png", "gt/train/cam{0}/{0}_gt.tif")
    for i in range(3):
        save(root, f"val/x/rgb/v{i}_rgb.png", IDS)
        save(root, f"gt/val/x/v{i}_gt.png", IDS)
    (root / "lists").mkdir()
    (root / "lists/val.txt").write_text("v2\n\nval/x/rgb/v0.png\n")
    assert [sample.id for sample in open_dataset(f"folder:{root}", "train")] == ["0", "1"]
    assert [sample.id for sample in open_dataset(f"folder:{root}", "val")] == ["v2", "v0"]
    assert unmatched_labels(f"folder:{root}", "val") == []
    (root / "train/cam1/rgb/1_rgb.png").unlink()
    assert unmatched_labels(f"folder:{root}", "train") == [root / "gt/train/cam1/1_gt.tif"]
    (root / "lists/val.txt").write_text("v7\n")
    with pytest.raises(InputError, match=r"images of .*lists/val.txt: found no v7 \(1 of 1 missing\)"):
        open_dataset(f"folder:{root}", "val")


def test_any_number_of_folders(tmp_path: Path) -> None:
    text = 'images: "images/{split}/**"\nlabels: "labels/{split}/**"\nclasses: {a: 0, b: 1, c: 2}'
    root = write(tmp_path, text, "images/train/0.png", "labels/train/0.png")
    save(root, "images/train/x/y/9.png", IDS)
    save(root, "labels/train/x/y/9.png", IDS)
    assert [sample.id for sample in open_dataset(f"folder:{root}", "train")] == ["0", "9"]


def test_cvats_labelmap_as_it_is(tmp_path: Path) -> None:
    labelmap = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\ncar: x:0,0,230::\n"
    for images, labels in (("JPEGImages", "SegmentationClass"), ("images/train", "labels/train")):
        root = tmp_path / images[:4]
        save(root, f"{images}/a.jpg", IDS)
        save(root, f"{labels}/a.png", COLOURS[IDS])
        (root / "labelmap.txt").write_text(labelmap)
        if images == "JPEGImages":
            save(root, f"{images}/b.jpg", IDS)
            (root / "ImageSets/Segmentation").mkdir(parents=True)
            (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
        dataset = open_dataset(f"folder:{root}", "train")
        assert dataset.classes.names == ("background", "road", "car: x")
        assert dataset.classes.palette == tuple(map(tuple, COLOURS.tolist()))
        assert [sample.id for sample in dataset] == ["a"]
        assert np.array_equal(dataset[0].label, IDS)
    (root / "labelmap.txt").write_text("road:300,0,0::\n")
    with pytest.raises(
        InputError, match=r"labelmap.txt: line 1: found 'road:300,0,0::', expected lines such as"
    ):
        open_dataset(f"folder:{root}", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "found list, expected images, labels, splits, ignore, classes as keys"),
        ("clases: {a: 1}", "key: found 'clases', expected one of .* \\(did you mean 'classes'"),
        ("classes: [a, b]", "classes: found list, expected names and their ids or colours"),
        ("classes: {a: 1, b: 1}", "1: found it in a and in b, expected each in one place"),
        ("classes: {a: 0, b: 1}\nignore: [1]", "1: found it in b and in ignore"),
        ("classes: {a: -1, b: 1}", "class 'a': found -1, expected ids from 0 to 65535, or colours"),
        (
            "classes: {a: 'red', b: 1}",
            "class 'a': found 'red', expected a colour such as '#0000e6', in quotes",
        ),
        ("classes: {a: , b: 1}", "class 'a': found None, expected ids"),
        ("classes: {a: [], b: 1}", "class 'a': found no id, expected one or more"),
        ("classes: {1: 1, b: 2}", "class 1: found int, expected a name"),
        ("classes: {a: {id: 1}, b: 2}", "class 'a': key: found 'id', expected one of colour, ids"),
        ("classes: {a: 1}", "found 1 names, expected 2 to 255"),
        ("images: ../x", "images: found ../x, expected a path below the folder"),
        ("images: '{name}'", "images: found {name}, expected {split} and {id} only"),
        ("images: '{id}/x'", "images: found {id}/x, expected {id} once, in the name"),
        ("labels: 'x/*/{id}'", "labels: found x/\\*/{id}, expected no more wildcards than in images"),
        ("splits: [val]", "splits: found \\['val'\\], expected names of folders or of lists"),
        ("a: [", "no YAML"),
    ],
)
def test_a_wrong_dataset_yaml_is_told_in_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, text, "images/train/{}.png", "labels/train/{}.png")
    with pytest.raises(InputError, match=f"dataset.yaml.*{message}"):
        open_dataset(f"folder:{tmp_path}", "train")


def test_classes_txt_beside_a_dataset_yaml_of_names(tmp_path: Path) -> None:
    root = write(tmp_path, 'images: "photos"\nlabels: "masks"', "photos/{}.png", "masks/{}.png")
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert np.array_equal(open_dataset(f"folder:{root}", "train")[1].label, IDS)
    with pytest.raises(InputError, match="split of folder: found 'val', expected one of train"):
        open_dataset(f"folder:{root}", "val")


@pytest.mark.parametrize(
    "layout",
    ["images/valid labels/valid", "valid/images valid/labels", "images/validation labels/validation"],
)
def test_a_split_called_valid_and_folders_below_it_are_found(tmp_path: Path, layout: str) -> None:
    images, labels = layout.split()
    root = write(tmp_path, "", f"{images}/{{}}.png", f"{labels}/{{}}.png")
    (root / "dataset.yaml").unlink()
    (root / "classes.txt").write_text("a\nb\nc\n")
    assert has_labels(f"folder:{root}", "val")
    assert np.array_equal(open_dataset(f"folder:{root}", "val")[1].label, IDS)


@pytest.mark.parametrize(
    ("images", "labels", "lines"),
    [
        (
            "photos/train/{}.jpg",
            "masks/train/{}_mask.png",
            '`images: "photos/{split}"` and `labels: "masks/{split}/{id}_mask"`',
        ),
        (
            "images/train/cam{0}/{0}.png",
            "labels/train/cam{0}/{0}.png",
            '`images: "images/{split}/*"` and `labels: "labels/{split}/*"`',
        ),
        ("train/rgb/{}.png", "train/gt/{}.png", '`images: "{split}/rgb"` and `labels: "{split}/gt"`'),
        (
            "images/train/{}.png",
            "labels/train/{}_L.png",
            'how they are named, such as `labels: "labels/{split}/{id}_L"`',
        ),
        ("images/train/{}.png", "labels/train/{}.jpg", "0.jpg is none, and a lossy format changes ids"),
    ],
)
def test_another_layout_is_asked_about_with_the_lines_that_name_it(
    tmp_path: Path, images: str, labels: str, lines: str
) -> None:
    root = write(tmp_path, "", images, labels)
    (root / "dataset.yaml").unlink()
    (root / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(InputError) as refused:
        open_dataset(f"folder:{root}", "train")
    assert lines in str(refused.value)
    if "`" in lines:
        told = str(refused.value).split("`")[1::2]
        (root / "dataset.yaml").write_text("\n".join(told))
        assert len(check_dataset(open_dataset(f"folder:{root}", "train")).sizes) == 1


def test_two_labels_of_one_image(tmp_path: Path) -> None:
    root = write(tmp_path, "classes: {a: 0, b: 1, c: 2}", "images/train/{}.png", "labels/train/{}.png")
    save(root, "labels/train/0.tif", IDS)
    with pytest.raises(
        InputError, match=r"0.tif: found another label of that name, .*0.png, expected one label"
    ):
        open_dataset(f"folder:{root}", "train")


def test_labels_of_other_names_in_a_partly_labelled_target_are_asked_about(tmp_path: Path) -> None:
    root = write(tmp_path, "classes: {a: 0, b: 1, c: 2}", "images/train/{}.png", "labels/train/{}_mask.png")
    pool = open_dataset(f"folder:{root}", "train", labelled="some")
    with pytest.raises(InputError) as refused:
        select_labelled(pool, f"folder:{root}", "all", None)
    line = 'labels: "labels/{split}/{id}_mask"'
    assert str(refused.value).endswith(f"expected names of images; in dataset.yaml: `{line}`")
    (root / "dataset.yaml").write_text(f"classes: {{a: 0, b: 1, c: 2}}\n{line}\n")
    assert np.array_equal(open_dataset(f"folder:{root}", "train")[0].label, IDS)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    text = "classes: {a: 0, b: 1, c: 2}\nsplits: {val: val.txt}"
    root = write(tmp_path, text, "images/val/{}.png", "labels/val/{}.png")
    for call in (has_labels, open_dataset):
        with pytest.raises(
            InputError, match=r"list of images .*val.txt: found no such file or directory, expected an"
        ):
            call(f"folder:{root}", "val")

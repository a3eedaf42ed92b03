"""Each published layout and label format, from files to train ids; every kind of wrong file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import CAMVID, CITYSCAPES, ClassSet, Unlabelled, open_dataset, subset
from udas_fast.data.files import read_image
from udas_fast.data.labels import IdMap, read_ids
from udas_fast.data.specs import DATASETS
from udas_fast.errors import InputError

SHARED = Path(__file__).resolve().parents[2] / "../shared/data"


# cityscapesScripts' label table and SYNTHIA's readme, as class names.
def _table(text: str) -> dict[int, str]:
    return {int(i): name.replace("_", " ") for i, name in (pair.split(":") for pair in text.split())}


CITYSCAPES_NAMES = _table(
    "7:road 8:sidewalk 11:building 12:wall 13:fence 17:pole 19:traffic_light 20:traffic_sign 21:vegetation "
    "22:terrain 23:sky 24:person 25:rider 26:car 27:truck 28:bus 31:train 32:motorcycle 33:bicycle"
)
SYNTHIA_NAMES = _table(
    "1:sky 2:building 3:road 4:sidewalk 5:fence 6:vegetation 7:pole 8:car 9:traffic_sign 10:person "
    "11:bicycle 12:motorcycle 15:traffic_light 16:terrain 17:rider 18:truck 19:bus 20:train 21:wall"
)
IDS = {
    "cityscapes": [*range(34), 255],
    "gta5": range(35),
    "synthia": range(23),
    "camvid": range(12),
}
NAMES = {
    "cityscapes": CITYSCAPES_NAMES,
    "gta5": CITYSCAPES_NAMES,
    "synthia": SYNTHIA_NAMES,
    "camvid": dict(enumerate(CAMVID.names)),
}


def all_ids(kind: str) -> np.ndarray:
    """Return a label [5, 12] that holds each declared id."""
    return np.resize(np.array(IDS[kind], np.uint8), (5, 12))


@pytest.mark.parametrize("kind", IDS)
def test_ids_become_train_ids(make_dataset, kind):
    root, images, ids = make_dataset(kind, [all_ids(kind), all_ids(kind)[::-1].copy()])
    dataset = open_dataset(f"{kind}:{root}", "train")
    assert (len(dataset), dataset.name) == (2, kind)
    for i, sample in enumerate(dataset):
        assert np.array_equal(sample.image, images[i])
        assert sample.label.dtype == np.uint8
        for found, train_id in zip(ids[i].ravel(), sample.label.ravel(), strict=True):
            name = NAMES[kind].get(int(found))
            assert (None if train_id == 255 else dataset.classes.names[train_id]) == name


def test_class_sets_are_the_published_ones():
    assert (len(CITYSCAPES), len(CAMVID)) == (19, 11)
    assert dict(zip(CITYSCAPES.names, CITYSCAPES.palette, strict=True))["car"] == (0, 0, 142)
    assert list(CITYSCAPES.names) == [CITYSCAPES_NAMES[i] for i in sorted(CITYSCAPES_NAMES)]
    assert sum(v != 255 for v in DATASETS["synthia"].id_to_train_id.values()) == 19


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        (((1, 2, 3),), "found 1 colours, expected 2"),
        (((1, 2, 3), (0, 0, 256)), r"found colour \(0, 0, 256\)"),
    ],
)
def test_a_palette_is_a_colour_for_each_class(palette, message):
    with pytest.raises(InputError, match=f"palette of mine: {message}"):
        ClassSet("mine", ("road", "car"), palette)


def test_sample_ids(make_dataset):
    label = all_ids("cityscapes")
    root, *_ = make_dataset("cityscapes", [label] * 4)
    found = [sample.id for sample in open_dataset(f"cityscapes:{root}", "train").samples]
    expected = [("aachen", 0), ("aachen", 2), ("bochum", 1), ("bochum", 3)]
    assert found == [f"{city}_{i:06d}_000019" for city, i in expected]


def test_segnet_layout_of_camvid(make_dataset):
    root, images, ids = make_dataset("segnet", [all_ids("camvid")], split="test")
    sample = open_dataset(f"camvid:{root}", "test")[0]
    assert np.array_equal(sample.image, images[0])
    assert np.array_equal(sample.label, np.where(ids[0] == 11, 255, ids[0]))


def test_plain_folder(make_dataset):
    root, _, ids = make_dataset("folder", [np.array([[0, 1, 2, 255]], np.uint8)], split="val")
    (root / "classes.txt").write_text("grass\nwater\n street \n\n")
    dataset = open_dataset(f"folder:{root}", "val")
    assert dataset.classes.names == ("grass", "water", "street")
    assert len(set(dataset.classes.palette)) == 3
    assert np.array_equal(dataset[0].label, ids[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "classes.txt"),
        ("one", "1 names"),
        ("a\n\nb", "line 2"),
        ("a\nb\na", "'a' twice"),
        ("\n".join(map(str, range(256))), "256 names"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_plain_folder_needs_class_names(make_dataset, text, message):
    root, *_ = make_dataset("folder", [np.zeros((2, 2), np.uint8)])
    if text is not None:
        (root / "classes.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        open_dataset(f"folder:{root}", "train")


@pytest.mark.parametrize(
    ("spec", "split", "message"),
    [
        ("camvid", "train", "KIND:ROOT"),
        ("camvid:", "train", "KIND:ROOT"),
        ("camvit:{root}", "train", "did you mean 'camvid'"),
        ("camvid:{root}/nowhere", "train", "no folder .*nowhere"),
        ("camvid:{root}", "trian", "did you mean 'train'"),
        ("gta5:{root}", "val", "expected one of train"),
        ("cityscapes:{root}", "train", "no folder .*leftImg8bit/train"),
    ],
)
def test_missing_parts_are_named(make_dataset, spec, split, message):
    root, *_ = make_dataset("camvid", [all_ids("camvid")])
    with pytest.raises(InputError, match=message):
        open_dataset(spec.format(root=root), split)


def test_empty_folder(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/train/.hidden.png").touch()
    (tmp_path / "images/train/Thumbs.db").touch()
    with pytest.raises(InputError, match=r"no images in .*train"):
        open_dataset(f"camvid:{tmp_path}", "train")


def test_an_image_without_label_is_refused_unless_opened_without_labels(make_dataset):
    root, images, _ = make_dataset("camvid", [all_ids("camvid")] * 4)
    for i in (1, 3):
        (root / f"labels/train/{i:04d}.png").unlink()
    with pytest.raises(InputError, match=r"images/train/0001.png: found no label .*1 more"):
        open_dataset(f"camvid:{root}", "train")
    for path in (root / "labels/train").iterdir():
        path.unlink()
    (root / "labels/train").rmdir()
    with pytest.raises(InputError, match=r"no folder .*labels/train"):
        open_dataset(f"camvid:{root}", "train")
    dataset = open_dataset(f"camvid:{root}", "train", labelled=False)
    assert dataset[3].label is None
    assert np.array_equal(dataset[3].image, images[3])


def test_two_images_of_one_name(make_dataset):
    root, images, _ = make_dataset("camvid", [all_ids("camvid")])
    Image.fromarray(images[0]).save(root / "images/train/0000.jpg")
    with pytest.raises(InputError, match=r"0000\.png: found another image of that name"):
        open_dataset(f"camvid:{root}", "train")


@pytest.mark.parametrize(
    ("kind", "wrong"), [("cityscapes", 34), ("gta5", 35), ("synthia", 23), ("synthia", 259), ("camvid", 12)]
)
def test_undeclared_id_names_file_and_id(make_dataset, kind, wrong):
    label = all_ids(kind).astype(np.uint16)
    label[2, 3] = wrong
    root, *_ = make_dataset(kind, [label if kind == "synthia" else label.astype(np.uint8)])
    with pytest.raises(InputError, match=rf"label .*\.png: found id {wrong}, expected ids among 0-"):
        open_dataset(f"{kind}:{root}", "train")[0]


def test_size_mismatch(make_dataset):
    root, *_ = make_dataset("camvid", [all_ids("camvid")])
    Image.new("RGB", (6, 5)).save(root / "images/train/0000.png")
    with pytest.raises(InputError, match=r"0000.png: found \d+x\d+ pixels, expected the 6x5"):
        open_dataset(f"camvid:{root}", "train")[0]


def damaged(good: bytes) -> dict[str, bytes]:
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    return {"empty": b"", "cut": good[: len(good) // 2], "text": b"nonsense" * 20, "flipped": bytes(flipped)}


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
@pytest.mark.parametrize("kind", ["camvid", "gta5", "synthia"])
def test_damaged_labels(make_dataset, kind, damage):
    root, *_ = make_dataset(kind, [np.tile(all_ids(kind), (8, 8))])
    dataset = open_dataset(f"{kind}:{root}", "train")
    path = dataset.samples[0].label
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(InputError, match=path.name):
        dataset[0]


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_images(tmp_path, damage, suffix):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(damaged(path.read_bytes())[damage])
    with pytest.raises(InputError, match=rf"image .*a\.{suffix}: found "):
        read_image(path)
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "b.png")


def test_labels_of_the_wrong_kind(tmp_path):
    path = tmp_path / "a.png"
    for image, kind, message in (
        (Image.new("RGB", (4, 4)), "JPEG", "a JPEG, which blurs ids and colours at every edge"),
        (Image.new("F", (4, 4)), "TIFF", "floating-point pixels"),
        (Image.new("I", (4, 4), 70000), "TIFF", "32-bit ids"),
        (Image.new("CMYK", (4, 4)), "TIFF", "8-bit CMYK pixels"),
    ):
        image.save(path, kind)
        with pytest.raises(
            InputError, match=f"found {message}, expected a PNG, TIFF or BMP whose pixels are"
        ):
            read_ids(path)
    Image.new("L", (4, 4)).save(path)
    with pytest.raises(InputError, match="8-bit grey PNG, expected a 16-bit RGB PNG"):
        read_ids(path, rgb16=True)


def test_palette_labels_of_few_bits_and_16_bit_grey_keep_their_ids(tmp_path):
    path = tmp_path / "a.png"
    ids = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    image = Image.fromarray(ids).convert("L")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    image.save(path, bits=2)
    assert path.read_bytes()[24:26] == bytes([2, 3])  # bit depth and colour type
    assert np.array_equal(read_ids(path), ids)
    Image.fromarray(ids.astype(np.uint16) * 300).save(path)
    assert np.array_equal(read_ids(path), ids.astype(np.uint16) * 300)
    with pytest.raises(InputError, match="id 300, 600, 900"):
        IdMap({0: 0})(read_ids(path), path)


def test_image_modes_become_rgb(tmp_path, png16):
    path = tmp_path / "a.png"
    grey = np.arange(0, 240, 12, dtype=np.uint8).reshape(4, 5)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    palette = Image.fromarray(grey).convert("L").quantize(256)
    for image in (Image.fromarray(grey), palette, Image.fromarray(rgb).convert("RGBA")):
        image.save(path)
        assert np.array_equal(read_image(path), rgb)
    Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    assert np.array_equal(read_image(path), rgb)
    path.write_bytes(png16(rgb.astype(np.uint16) * 257, [0] * 4))
    assert np.array_equal(read_image(path), rgb)
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif"), rgb)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(InputError, match=r"b.tif: found 32-bit"):
        read_image(tmp_path / "b.tif")


def test_images_are_turned_upright_by_exif():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", exif=exif)
    data.seek(0)
    assert np.array_equal(read_image(data), np.rot90(pixels, -1))  # 6: turn it clockwise


def test_subsets_are_nested_fixed_and_differ_by_seed(make_dataset):
    root, *_ = make_dataset("camvid", [all_ids("camvid")] * 30)
    dataset = open_dataset(f"camvid:{root}", "train")
    few, many = subset(dataset, 5), subset(dataset, 12)
    assert set(few.indices) < set(many.indices)
    assert few.indices == subset(dataset, 5).indices == sorted(few.indices)
    assert few.indices != subset(dataset, 5, seed=1).indices
    assert [sample.id for sample in few] == [dataset[i].id for i in few.indices]
    # Pinned, because published scores name only the seed and the number of labels.
    assert few.indices == [2, 7, 9, 17, 20]
    for n in (0, 31):
        with pytest.raises(InputError, match=f"labelled images of camvid: found {n}, expected 1 to 30"):
            subset(dataset, n)


def test_unlabelled_never_opens_a_label(make_dataset):
    root, images, _ = make_dataset("camvid", [all_ids("camvid")] * 3)
    dataset = open_dataset(f"camvid:{root}", "train")
    for sample in dataset.samples:
        sample.label.write_bytes(b"broken")
    for view in (Unlabelled(dataset), Unlabelled(subset(dataset, 3))):
        assert [sample.label for sample in view] == [None] * 3
        assert np.array_equal(view[2].image, images[2])
        assert (len(view), view.classes, view.name) == (3, CAMVID, "camvid")


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [("camvid", "train", 367), ("camvid", "val", 101), ("rendered", "train", 820), ("rendered", "val", 60)],
)
def test_real_data(name, split, count):
    root = SHARED / name
    if not root.is_dir():
        pytest.skip(f"no {root}")
    dataset = open_dataset(f"camvid:{root}", split)
    assert len(dataset) == count
    for i in (0, count // 2, count - 1):
        sample = dataset[i]
        assert sample.image.shape == (360, 480, 3)
        assert sample.label.shape == (360, 480)
        assert set(np.unique(sample.label)) <= {*range(11), 255}

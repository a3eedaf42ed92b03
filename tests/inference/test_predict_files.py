"""`udas-fast predict`: results for images, folders and videos, and errors."""

from __future__ import annotations

import csv
import re
import threading
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from udas_fast import TrainedModel, cli
from udas_fast.data import CAMVID, ClassSet, open_dataset
from udas_fast.data.classes import CITYSCAPES
from udas_fast.errors import InputError
from udas_fast.evaluation import colorize
from udas_fast.inference import DatasetFolder, Pictures, PredictedFiles, Table, media_files, predict_files
from udas_fast.inference import files as reading_files
from udas_fast.inference.outputs import PICTURES, Frame, Labelled, cityscapes_ids

Make = Callable[..., TrainedModel]
ALL = ("ids", "colour", "overlay", "confidence")


def _read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def _video(path: Path, frames: int = 3) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=5)  # lossless
        stream.width, stream.height, stream.pix_fmt = 56, 40, "bgr0"
        for i in range(frames):
            pixels = np.full((40, 56, 3), 40 * i, np.uint8)
            pixels[:20] = (255, 40 * i, 0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def _pictures(
    trained: TrainedModel, paths: Sequence[Path], out: Path, names: Sequence[str] = ("ids",), **options: bool
) -> PredictedFiles:
    return predict_files(trained, media_files(paths), [Pictures(out, names, CAMVID, **options)])


def test_every_picture_of_an_image(make_trained: Make, tmp_path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(tmp_path / "photo.png")
    trained, out = make_trained(), tmp_path / "a/b"
    assert _pictures(trained, [tmp_path / "photo.png"], out, ALL) == PredictedFiles(1)
    label, confidence = trained.predict(image)
    colour = colorize(label, CAMVID)
    np.testing.assert_array_equal(_read(out / "photo_ids.png"), label)
    np.testing.assert_array_equal(_read(out / "photo_colour.png"), colour)
    overlay = _read(out / "photo_overlay.png").astype(float)
    assert np.abs(overlay - (image.astype(float) + colour) / 2).max() <= 0.5
    grey = _read(out / "photo_confidence.png")
    assert grey.shape == (40, 56)
    assert np.abs(grey / 255 - confidence).max() <= 0.5 / 255 + 1e-6
    assert len(list(out.iterdir())) == 4


def test_cityscapes_ids_are_those_of_its_test_server(tmp_path: Path) -> None:
    # road, sidewalk, building, …, motorcycle, bicycle of cityscapesScripts' labels.py
    whole = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert cityscapes_ids(CITYSCAPES).tolist() == whole
    some = ClassSet("some", ("car", "road", "bicycle"), ((1, 1, 1), (2, 2, 2), (3, 3, 3)))
    assert cityscapes_ids(some).tolist() == [26, 7, 33]
    frame = Frame("photo", tmp_path / "photo.png", np.zeros((2, 2, 3), np.uint8))
    labelled = Labelled(frame, np.array([[1, 0], [2, 1]], np.uint8), np.ones((2, 2), np.float32))
    picture = PICTURES["cityscapes_ids"](labelled, some)
    assert picture.tolist() == [[7, 26], [33, 7]]
    assert picture.dtype == np.uint8
    with pytest.raises(InputError, match="cityscapes_ids: found a model with class"):
        Pictures(tmp_path, ["cityscapes_ids"], CAMVID)


def test_a_photo_is_turned_upright(make_trained: Make, tmp_path: Path, image: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8  # the camera was turned: the stored image is to be turned anticlockwise
    Image.fromarray(image).save(tmp_path / "photo.png", exif=exif)
    trained, out = make_trained(), tmp_path / "out"
    _pictures(trained, [tmp_path / "photo.png"], out)
    label, _ = trained.predict(np.rot90(image).copy())
    np.testing.assert_array_equal(_read(out / "photo_ids.png"), label)


def test_each_frame_of_a_video(make_trained: Make, tmp_path: Path) -> None:
    video = _video(tmp_path / "drive.mkv")
    trained, out = make_trained(), tmp_path / "out"
    assert _pictures(trained, [video], out).images == 3
    assert [path.name for path in sorted(out.iterdir())] == [f"drive_00000{i}_ids.png" for i in range(3)]
    frame = np.full((40, 56, 3), 80, np.uint8)
    frame[:20] = (255, 80, 0)
    np.testing.assert_array_equal(_read(out / "drive_000002_ids.png"), trained.predict(frame)[0])


def test_native_size_and_tiles(make_trained: Make) -> None:
    image = np.random.default_rng(0).integers(0, 256, (96, 140, 3), dtype=np.uint8)
    trained = make_trained()
    native = trained.predict(image, native=True)
    assert not np.array_equal(native[1], trained.predict(image)[1])  # resized to 32x48 before
    for one, other in zip(trained.predict(image, native=True, tile=(96, 140)), native, strict=True):
        np.testing.assert_array_equal(one, other)
    label, confidence = trained.predict(image, native=True, tile=(64, 64))
    assert label.shape == confidence.shape == (96, 140)
    assert not np.array_equal(confidence, native[1])  # the receptive field of its ASPP is larger than a tile


def test_strided_arrays_as_from_opencv(make_trained: Make, image: np.ndarray) -> None:
    trained = make_trained()
    flipped = image[..., ::-1]  # BGR to RGB, a view of negative strides
    for one, other in zip(trained.predict(flipped), trained.predict(flipped.copy()), strict=True):
        np.testing.assert_array_equal(one, other)
    for wrong in (image[..., 0], image.astype(np.float32), np.dstack([image, image[..., :1]])):
        with pytest.raises(InputError, match=r"image: found .*, expected uint8 RGB \[H, W, 3\]"):
            trained.predict(wrong)


def test_unreadable_input_is_refused(
    make_trained: Make, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    video, trained = _video(tmp_path / "drive.mkv"), make_trained()
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (problem,) = _pictures(trained, [tmp_path / "broken.mp4"], tmp_path / "out").problems
    assert re.match(r"video .*broken\.mp4: found unreadable data", problem)
    with pytest.raises(InputError, match="--write: found 'colours', expected one of .*did you mean 'colour'"):
        _pictures(trained, [video], tmp_path / "out", ["colours"])
    with pytest.raises(InputError, match="cannot be written"):
        _pictures(trained, [video], video / "below")
    with pytest.raises(InputError, match="found two of the name 'drive'"):
        media_files([video, tmp_path / "drive.mkv"])
    with pytest.raises(InputError, match="no such path"):
        media_files([tmp_path / "missing.mp4"])
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (problem,) = _pictures(trained, [video], tmp_path / "out").problems
    assert problem.endswith(
        'no PyAV to read it, expected pip install "udas-fast[video]", or a folder of its frames as images'
    )


def test_a_bad_file_is_named_and_the_others_are_written(
    make_trained: Make, tmp_path: Path, image: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(5):
        Image.fromarray(image).save(photos / f"{number}.png")
    (photos / "2.png").write_bytes((photos / "2.png").read_bytes()[:900])
    Image.fromarray(image).save(photos / "animation.gif")
    done = _pictures(make_trained(), [photos, photos / "animation.gif"], tmp_path / "out")
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [f"{n}_ids" for n in (0, 1, 3, 4)]
    assert done.images == 4
    assert [re.search(r"(2\.png|animation\.gif): found", problem)[1] for problem in done.problems] == [
        "2.png",
        "animation.gif",
    ]
    assert done.problems[1].endswith("expected a complete JPEG, PNG, BMP, WebP, TIFF or JPEG 2000 file")
    errors = capsys.readouterr().err
    assert all(f"skipped: {problem}\n" in errors for problem in done.problems)


class _Waits:
    """Output that prepares its first frame only once the network has seen the second."""

    needs_entropy = False

    def __init__(self) -> None:
        self.second_is_seen, self.written = threading.Event(), []

    def prepare(self, item: Labelled) -> Callable[[], None]:
        if item.frame.name == "0":
            assert self.second_is_seen.wait(600), "the network waits for an output"
        return lambda: self.written.append(item.frame.name)

    def close(self) -> None:
        self.written.append("end")


def test_the_network_runs_while_results_are_encoded_and_they_are_written_in_order(
    make_trained: Make, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for number in range(4):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    trained, output, seen = make_trained(), _Waits(), []

    def count(*_: object) -> None:
        seen.append(1)
        if len(seen) == 2:
            output.second_is_seen.set()

    trained.model.register_forward_pre_hook(count)
    predict_files(trained, media_files([tmp_path]), [output])
    assert output.written == ["0", "1", "2", "3", "end"]


def test_images_are_read_while_the_network_runs(
    make_trained: Make, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for number in range(3):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    read, second_is_read = reading_files.read_image, threading.Event()

    def reading(file: Path, **options: object) -> np.ndarray:
        pixels = read(file, **options)
        if file.stem == "1":
            second_is_read.set()
        return pixels

    monkeypatch.setattr(reading_files, "read_image", reading)
    trained = make_trained()

    def wait(*_: object) -> None:
        assert second_is_read.wait(600), "an image is read after the network has run"

    trained.model.register_forward_pre_hook(wait)
    assert predict_files(trained, media_files([tmp_path]), []) == PredictedFiles(3)


def test_a_folder_without_images_lists_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*: found no image, expected files \.jpg, .*\.tiff"):
        media_files([tmp_path])
    (tmp_path / "a.heic").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"found no image, but 1 files such as a\.heic, expected files \.jpg"
    ):
        media_files([tmp_path])


def test_the_command(
    make_trained: Make,
    tmp_path: Path,
    image: np.ndarray,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_trained().save(tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.fromarray(image).save(tmp_path / f"images/{name}.png")

    def run(*more: str) -> int:
        arguments = [
            "predict",
            tmp_path,
            tmp_path / "images",
            "--out",
            tmp_path / "out",
            "--device",
            "cpu",
            *more,
        ]
        monkeypatch.setattr("sys.argv", ["udas-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0

    assert run("--write", "overlay,ids", "--native", "--tile", "64x64") == 0
    assert "2 images labelled" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"a_overlay.png", "a_ids.png", "b_overlay.png", "b_ids.png"}
    assert run("--tile", "64") == 2
    assert "--tile: found '64', expected HEIGHTxWIDTH" in capsys.readouterr().err


def test_folders_are_walked_and_their_structure_is_kept(
    make_trained: Make, tmp_path: Path, image: np.ndarray
) -> None:
    photos = tmp_path / "photos"
    for name in ("b.png", "day/a.png", "day/late/a.jpg", ".cache/a.png", "out/a_ids.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(photos / name)
    files = media_files([photos], photos / "out")
    assert list(files.values()) == ["b", "day/a", "day/late/a"]
    predict_files(make_trained(), files, [Pictures(photos / "out", ["ids"], CAMVID)])
    written = sorted(path.relative_to(photos / "out").as_posix() for path in (photos / "out").rglob("*.png"))
    assert written == ["a_ids.png", "b_ids.png", "day/a_ids.png", "day/late/a_ids.png"]
    with pytest.raises(InputError, match="found two of the name 'a'"):
        media_files([photos / "day", photos / "out", photos / "day/late"])


def test_a_dataset_that_is_read_as_it_was_labelled(
    make_trained: Make, tmp_path: Path, image: np.ndarray
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "photos/day").mkdir(parents=True)
    Image.fromarray(image).save(tmp_path / "photos/day/a.png")
    Image.fromarray(image).save(tmp_path / "photos/b.jpg", exif=exif)
    trained, root, limit = make_trained(), tmp_path / "auto", 0.12
    files = media_files([tmp_path / "photos", _video(tmp_path / "drive.mkv", 2)])
    predict_files(trained, files, [DatasetFolder(root, CAMVID, limit)])
    with pytest.raises(InputError, match="--as-dataset .*auto: found a folder with files, expected a new or"):
        DatasetFolder(root, CAMVID)
    dataset = open_dataset(f"folder:{root}", "train")
    assert dataset.classes.names == CAMVID.names
    assert [dataset.id(i) for i in range(len(dataset))] == ["b", "day_a", "drive_000000", "drive_000001"]
    kept = set()
    for sample in dataset:
        label, confidence = trained.predict(sample.image)
        np.testing.assert_array_equal(sample.label, np.where(confidence >= limit, label, 255))
        kept |= set((confidence >= limit).ravel())
    assert kept == {True, False}
    with Image.open(root / "labels/train/b.png") as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))
    label, confidence = trained.predict(tmp_path / "photos/b.jpg")
    sure = confidence >= limit
    np.testing.assert_array_equal(colours[sure], colorize(label, CAMVID)[sure])
    assert (root / "images/train/day_a.png").samefile(tmp_path / "photos/day/a.png")


def test_two_images_of_one_name_do_not_replace_each_other(
    make_trained: Make, tmp_path: Path, image: np.ndarray
) -> None:
    for name in ("photos/day/a.png", "photos/day_a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    files, output = media_files([tmp_path / "photos"]), DatasetFolder(tmp_path / "auto", CAMVID)
    with pytest.raises(InputError, match="image day/a: found another one of the name 'day_a'"):
        predict_files(make_trained(), files, [output])


def test_images_are_copied_where_they_cannot_be_linked(
    make_trained: Make, tmp_path: Path, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    Image.fromarray(image).save(tmp_path / "a.png")
    predict_files(
        make_trained(), media_files([tmp_path / "a.png"]), [DatasetFolder(tmp_path / "auto", CAMVID)]
    )
    assert (tmp_path / "auto/images/train/a.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_the_table_of_every_image(make_trained: Make, tmp_path: Path, image: np.ndarray) -> None:
    Image.fromarray(image).save(tmp_path / "a.png")
    trained = make_trained()
    trained.temperature = 2.0
    predict_files(trained, media_files([tmp_path / "a.png"]), [Table(tmp_path / "deep/table.csv", CAMVID)])
    with (tmp_path / "deep/table.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    label, confidence = trained.predict(image)
    assert row["image"] == "a"
    assert float(row["confidence"]) == pytest.approx(confidence.mean(), abs=1e-4)
    for number, name in enumerate(CAMVID.names):
        assert float(row[name]) == pytest.approx((label == number).mean(), abs=1e-4)
    # ADVENT, eq. 4, at full resolution
    output, size = trained.logits(image)
    logits = F.interpolate(output.primary.double(), size, mode="bilinear", align_corners=output.align_corners)
    chance = (logits / 2).softmax(1)
    entropy = -(chance * chance.log()).sum(1).mean() / np.log(len(CAMVID))
    assert float(row["entropy"]) == pytest.approx(entropy.item(), abs=1e-4)


def test_a_film_of_each_picture(make_trained: Make, tmp_path: Path, image: np.ndarray) -> None:
    av = pytest.importorskip("av")
    Image.fromarray(image).save(tmp_path / "photo.png")
    videos = [_video(tmp_path / "drive.mkv"), _video(tmp_path / "night.mkv", 2)]
    trained, out = make_trained(), tmp_path / "out"
    _pictures(trained, [*videos, tmp_path / "photo.png"], out, ["overlay", "confidence"], films=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "drive_confidence.mp4",
        "drive_overlay.mp4",
        "night_confidence.mp4",
        "night_overlay.mp4",
        "photo_confidence.png",
        "photo_overlay.png",
    ]
    with av.open(str(out / "drive_overlay.mp4")) as film:
        assert film.streams.video[0].average_rate == 5
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert len(frames) == 3
    _pictures(trained, [videos[0]], tmp_path / "frames", ["overlay"])
    first = _read(tmp_path / "frames/drive_000000_overlay.png").astype(float)
    assert np.abs(frames[0] - first).mean() < 25  # lossy, and with half of the colours
    with pytest.raises(InputError, match="--film: found --write ids, expected colour, overlay or confidence"):
        Pictures(out, ["ids"], CAMVID, films=True)


def test_a_film_of_odd_sides(make_trained: Make, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    pictures = Pictures(tmp_path, ["colour"], CAMVID, films=True)
    for number in range(2):
        frame = Frame(f"day/a_{number:06d}", tmp_path / "a.mkv", np.zeros((41, 57, 3), np.uint8), Fraction(5))
        pictures.prepare(Labelled(frame, np.zeros((41, 57), np.uint8), np.ones((41, 57), np.float32)))()
    pictures.close()
    with av.open(str(tmp_path / "day/a_colour.mp4")) as film:
        assert (film.streams.video[0].height, film.streams.video[0].width) == (40, 56)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "predict: found none of them, expected --out, --as-dataset or --table"),
        (("--film", "--table", "t.csv"), "--film: found no --out"),
        (("--min-confidence", "0.5", "--table", "t.csv"), "--min-confidence: found no --as-dataset"),
    ],
)
def test_what_is_written_has_a_place(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["udas-fast", "predict", str(tmp_path), str(tmp_path), *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert message in capsys.readouterr().err

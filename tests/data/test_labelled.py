"""Labelled target images: chosen among those that have a label, fixed by a list, or a set of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from udas_fast import DataConfig, Trainer
from udas_fast.data import open_dataset, subset
from udas_fast.data.domains import Domains
from udas_fast.data.labelled import choose_labelled, with_label
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, override, small

IMAGES = 12


@pytest.fixture
def partial(camvid_folder: Callable[..., Path]) -> Path:
    """A dataset whose images 1, 4, 6 and 9 have a label, of which that of 4 is void in every pixel."""
    root = camvid_folder("partial", train=IMAGES)
    for path in sorted((root / "labels/train").glob("*.png")):
        if int(path.stem) not in (1, 4, 6, 9):
            path.unlink()
    blank(root, 4)
    return root


def blank(root: Path, index: int) -> None:
    """Make the label of an image void: id 11 of CamVid in every pixel."""
    Image.fromarray(np.full((24, 32), 11, np.uint8)).save(root / f"labels/train/{index:04d}.png")


def recipe(name: str = "udas", steps: int = 6) -> Recipe:
    return override(small(get_recipe(name), size=(32, 48), steps=steps, batch_size=2), ["model.width=4"])


def open_domains(root: Path, **options: object) -> Domains:
    needed, optional = recipe().streams
    config = DataConfig("streets:sim", f"camvid:{root}", engine="torch", **options)
    return Domains.open(config, recipe().input, needed=needed, optional=optional, recipe="udas")


def test_images_without_a_label_are_unlabelled_where_some_suffice(partial: Path) -> None:
    with pytest.raises(InputError, match=r"0000\.png: found no label .* \(and 7 more without one\)"):
        open_dataset(f"camvid:{partial}", "train")
    dataset = open_dataset(f"camvid:{partial}", "train", labelled="some")
    assert len(dataset) == IMAGES
    assert with_label(dataset) == [1, 4, 6, 9]
    assert [dataset[i].label is None for i in (0, 1, 2)] == [True, False, True]
    (partial / "labels/train").rename(partial / "labels/away")
    assert with_label(open_dataset(f"camvid:{partial}", "train", labelled="some")) == []


def test_where_every_image_has_a_label_a_number_chooses_as_it_always_did(camvid_folder) -> None:
    root = camvid_folder("whole", train=IMAGES)
    dataset = open_dataset(f"camvid:{root}", "train")
    for number in range(1, IMAGES + 1):
        taken, void = choose_labelled(dataset, number)
        assert sorted(taken) == subset(dataset, number).indices
        assert void == []


def test_void_labels_are_never_chosen_and_subsets_stay_nested(camvid_folder) -> None:
    root = camvid_folder("whole", train=IMAGES)
    dataset = open_dataset(f"camvid:{root}", "train")
    order = [choose_labelled(dataset, n)[0] for n in range(1, IMAGES + 1)][-1]
    for index in order[:2]:
        blank(root, index)
    assert choose_labelled(dataset, 3) == (order[2:5], [f"{i:04d}" for i in order[:2]])
    for number in range(1, IMAGES - 2):
        assert set(choose_labelled(dataset, number)[0]) < set(choose_labelled(dataset, number + 1)[0])
    taken, void = choose_labelled(dataset, "all")
    assert sorted(taken) == sorted(order[2:])
    assert len(void) == 2


def test_all_a_number_and_a_list_choose_among_the_labels_that_are_there(
    partial: Path, tmp_path: Path
) -> None:
    dataset = open_dataset(f"camvid:{partial}", "train", labelled="some")
    assert choose_labelled(dataset, "all") == ([1, 6, 9], ["0004"])
    assert set(choose_labelled(dataset, 2)[0]) < {1, 6, 9}
    ids = tmp_path / "ids.txt"
    ids.write_text("0009\n\n0001\n0009\n")
    assert choose_labelled(dataset, str(ids)) == ([9, 1], [])
    for content, sentence in (
        (
            "0001\n0009.bmp\n",
            r"id in .*ids\.txt: found '0009.bmp' \(1 of 2 are not there\).*did you mean '0009'",
        ),
        ("0002\n0001\n", r"found '0002', which has no label \(1 of 2 have none\), expected ids of labelled"),
        ("0004\n", "found none, expected images with a label; labels without .* count as none: 1"),
        ("\n", "no id, expected ids of labelled images"),
    ):
        ids.write_text(content)
        with pytest.raises(InputError, match=sentence):
            choose_labelled(dataset, str(ids))
    with pytest.raises(
        InputError, match=r"--num-labels: found nowhere \(No such file.*expected 'all', a num"
    ):
        choose_labelled(dataset, "nowhere")
    with pytest.raises(InputError, match="found 4, expected 1 to 3, the images with a label; labels without"):
        choose_labelled(dataset, 4)


def test_the_counts_are_told_and_no_label_is_seen_unless_asked_for(partial: Path) -> None:
    plain = open_domains(partial)
    assert plain.labelled is None
    assert (
        "target camvid (0 labelled, 12 unlabelled; 4 labels unused without --num-labels)" in plain.describe()
    )
    every = open_domains(partial, num_labels="all")
    assert every.labelled_ids() == ("0001", "0006", "0009")
    # Labelled images are no part of the unlabelled ones: their labels are known.
    assert "target camvid (3 labelled, 9 unlabelled), val camvid (2)" in every.describe()
    ids = {every.unlabelled.id(i) for i in range(len(every.unlabelled))}
    assert ids == {f"{i:04d}" for i in range(IMAGES)} - set(every.labelled_ids())
    assert every.notices == ("labels of camvid without a labelled pixel, which count as none: 1 (0004)",)
    assert [every.unlabelled[i].label for i in (1, 2)] == [None, None]


def test_an_unlabelled_set_of_its_own_and_its_split(partial: Path, camvid_folder) -> None:
    other = camvid_folder("other", train=5)
    for name, count in ((f"camvid:{other}", 5), (f"camvid:{other}@train", 5), (f"camvid:{partial}@val", 2)):
        found = open_domains(partial, num_labels=2, unlabelled=name)
        assert (len(found.unlabelled), len(found.labelled), len(found.val)) == (count, 2, 2)
    with pytest.raises(InputError, match="expected one of"):
        open_domains(partial, unlabelled=f"camvid:{partial}@extra")
    config = DataConfig(unlabelled="camvid:real@val").absolute()
    assert config.unlabelled == f"camvid:{Path.cwd() / 'real@val'}"


def test_where_every_image_is_labelled_all_are_unlabelled_too(camvid_root: Path) -> None:
    found = open_domains(camvid_root, num_labels="all")
    assert len(found.unlabelled) == len(found.labelled) > 0


def test_a_labelled_set_of_its_own(partial: Path, camvid_folder) -> None:
    few = f"camvid:{camvid_folder('few', train=3)}"
    assert open_domains(partial, labelled=few).labelled_ids() == ("0000", "0001", "0002")
    assert len(open_domains(partial, labelled=few, num_labels=2).labelled) == 2
    assert open_domains(partial, labelled=few, num_labels=0).labelled is None
    needed, optional = get_recipe("supervised").streams
    alone = Domains.open(
        DataConfig(labelled=few), recipe().input, needed=needed, optional=optional, recipe="supervised"
    )
    assert (len(alone.labelled), len(alone.val)) == (3, 2)
    needed, optional = get_recipe("no_adaptation").streams
    config = DataConfig("streets:sim", labelled=few)
    with pytest.raises(InputError, match="--labelled: found camvid:.*expected none: recipe plain uses no"):
        Domains.open(config, recipe().input, needed=needed, optional=optional, recipe="plain")


def test_labels_that_are_added_later_change_no_run_that_goes_on(
    partial: Path, camvid_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{partial}", "all", engine="torch")
    run = tmp_path / "run"
    assert "3 labelled, 9 unlabelled" in Trainer(recipe(), data, run_dir=run, device="cpu").describe()
    assert yaml.safe_load((run / "run.yaml").read_text())["run"]["labelled"] == ["0001", "0006", "0009"]
    assert (
        "NOTICE: labels of camvid without a labelled pixel, which count as none: 1 (0004)"
        in capsys.readouterr().err
    )
    label = (partial / "labels/train/0001.png").read_bytes()
    (partial / "labels/train/0002.png").write_bytes(label)
    resumed = Trainer.resume(run, device="cpu")
    assert resumed.domains.labelled_ids() == ("0001", "0006", "0009")
    assert "void or newer than the run: 2" in capsys.readouterr().err
    (partial / "labels/train/0001.png").unlink()
    with pytest.raises(InputError, match=r"labelled image in run\.yaml: found '0001', which has no label"):
        Trainer.resume(run, device="cpu")


def test_labels_with_other_names_than_images_are_named(partial: Path) -> None:
    folder = partial / "labels/train"
    (folder / "0002_mask.png").write_bytes((folder / "0001.png").read_bytes())
    assert (
        open_domains(partial, num_labels=2)
        .notices[-1]
        .endswith("without an image: 1 (" + str(folder / "0002_mask.png") + ")")
    )
    for name in ("0001", "0004", "0006", "0009"):
        (folder / f"{name}.png").rename(folder / f"{name}_mask.png")
    with pytest.raises(
        InputError, match=r"found none of an image, but 5 \(.*0001_mask\.png, …\), expected names"
    ):
        open_domains(partial, num_labels=2)


@pytest.mark.parametrize("role", ["source", "val"])
def test_labels_without_a_labelled_pixel_are_refused_before_any_work(
    role: str, camvid_folder, tmp_path: Path
) -> None:
    root = camvid_folder("void")
    for path in (root / ("labels/train" if role == "source" else "labels/val")).glob("*.png"):
        Image.fromarray(np.full((24, 32), 11, np.uint8)).save(path)
    name = f"camvid:{root}"
    with pytest.raises(InputError, match=rf"labels of {role} camvid: found no labelled pixel in \d labels"):
        Trainer(recipe(), DataConfig(name, name), run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run/run.yaml").exists()


def test_notices_about_labels_are_shown_before_training(
    camvid_folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = camvid_folder("data")
    blank(root, 0)
    name = f"camvid:{root}"
    Trainer(recipe(), DataConfig(name, name), run_dir=tmp_path / "run", device="cpu")
    assert (
        "NOTICE: source camvid: labels without a labelled pixel: 1 of 4 (0000)\n" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_run_on_a_partly_labelled_target_trains_and_is_scored(
    partial: Path, camvid_root: Path, tmp_path: Path
) -> None:
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{partial}", 2, engine="torch")
    trainer = Trainer(recipe(steps=6), data, run_dir=tmp_path / "run", device="cpu")
    assert {*trainer.fit()} == {"adaptation", "self_training.1", "self_training.2"}
    report = tmp_path / "run/pseudo_labels/self_training.1/report.json"
    # Reports see the labels that are there; training sees the chosen ones.
    assert '"labelled": true' in report.read_text()


def test_lists_of_unimatch_are_read_as_they_are(tmp_path: Path) -> None:
    names = [("ulm", "ulm_000007_000019"), ("aachen", "aachen_000010_000019"), ("jena", "jena_000085_000019")]
    lines = []
    for city, name in names:
        image = f"leftImg8bit/train/{city}/{name}_leftImg8bit.png"
        for file in (image, f"gtFine/train/{city}/{name}_gtFine_labelIds.png"):
            (tmp_path / file).parent.mkdir(parents=True)
            Image.fromarray(np.full((4, 6), 7, np.uint8)).save(tmp_path / file)
        lines.append(f"{image} gtFine/train/{city}/{name}_gtFine_labelTrainIds.png\n")
    dataset = open_dataset(f"cityscapes:{tmp_path}", "train")
    (tmp_path / "labeled.txt").write_text(lines[2] + lines[0])
    chosen, _ = choose_labelled(dataset, str(tmp_path / "labeled.txt"))
    assert [dataset.id(index) for index in chosen] == ["jena_000085_000019", "ulm_000007_000019"]
    (tmp_path / "labeled.txt").write_text(lines[0].replace("ulm", "bonn"))
    with pytest.raises(InputError, match=r"found 'leftImg8bit/train/bonn/.*\(1 of 1 are not there\)"):
        choose_labelled(dataset, str(tmp_path / "labeled.txt"))


def test_shares_are_the_same_bits_in_a_run_file() -> None:
    # Another share would draw other images after a resume.
    config = DataConfig(source=("camvid:/a=0.3333333333333333", "camvid:/b=3"))
    assert list(config.absolute().sources.values()) == [1 / 3, 3.0]

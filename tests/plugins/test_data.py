from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from usdcore.engine.data import SeededDataset, eval_loader, train_loader
from usdcore.errors import UsdcoreError
from usdcore_data.config import DigitsConfig, TimmConfig
from usdcore_data.digits import Digits
from usdcore_data.folders import TimmData, _training_transform
from usdcore_data.source import Source

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)


def write_image(path, size=8, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Two splits, three classes, images of 8x8; returns the root."""
    for split, count in (("train", 4), ("test", 2)):
        for label, name in enumerate(("cat", "dog", "eel")):
            for number in range(count):
                write_image(tmp_path / split / name / f"{number}.png", seed=100 * label + number + len(split))
    return tmp_path


def config(root, **options):
    defaults = {"eval_split": "test", "input_size": 8, "batch_size": 4, "mean": MEAN, "std": STD}
    return TimmConfig(source="timm", root=root, **(defaults | options))


def load(root, **options):
    return TimmData(config(root, **options)).load()


def batches(datasets, options, epoch=0):
    return torch.cat([images for images, _ in train_loader(datasets, options, 0, epoch)])


def test_registration_needs_no_torch():
    code = (
        "import sys, usdcore_data, usdcore_gatenets, usdcore_splits\n"
        "print([m for m in ('torch', 'timm', 'numpy', 'PIL', 'sklearn') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


# Digits


def digits(**options):
    return Digits(DigitsConfig(source="digits", batch_size=32, **options)).load()


def test_digits_split_is_stratified_and_normalised():
    data = digits()
    assert (len(data.train), len(data.train_eval), len(data.test)) == (1437, 1437, 360)
    assert (data.num_classes, data.in_chans) == (10, 1)
    image, label = data.train[0]
    assert image.shape == (1, 8, 8)
    assert image.dtype == torch.float32
    assert isinstance(label, int)
    shares = np.bincount(data.test.labels)
    assert shares.min() >= 35
    assert shares.max() <= 37
    images = torch.stack([image for image, _ in data.train_eval])
    assert images.mean().abs() < 1e-4
    assert abs(images.std() - 1) < 1e-3


def test_digits_parts_do_not_overlap():
    data = digits()
    train = {image.numpy().tobytes() for image, _ in data.train_eval}
    test = [image.numpy().tobytes() for image, _ in data.test]
    assert not train & set(test)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_digits_are_scaled_up(interpolation):
    small, large = digits(), digits(input_size=16, interpolation=interpolation)
    assert large.test[0][0].shape == (1, 16, 16)
    assert large.fingerprint == small.fingerprint
    repeated = small.test[0][0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(large.test[0][0], repeated) == (interpolation == "nearest")


def test_digits_shift_by_up_to_one_pixel():
    data = digits(augment="shift")
    plain = torch.nn.functional.pad(data.train_eval[3][0], (1, 1, 1, 1), value=float(data.train_eval[3][0].min()))
    shifts = {plain[:, y : y + 8, x : x + 8].numpy().tobytes(): (y, x) for y in range(3) for x in range(3)}
    seen = {shifts[SeededDataset(data.train, 0, epoch)[3][0].numpy().tobytes()] for epoch in range(80)}
    assert seen == {(y, x) for y in range(3) for x in range(3)}


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsdcoreError, match=r"usdcore\[quickstart\]"):
        digits()


# Folders


def test_a_folder_is_read_as_it_is(folder):
    data = load(folder)
    assert (len(data.train), len(data.test), data.num_classes, data.in_chans) == (12, 6, 3, 3)
    assert data.train.labels == [0] * 4 + [1] * 4 + [2] * 4
    pixels = np.array(Image.open(folder / "test" / "dog" / "1.png"))
    image, label = data.test[3]
    assert label == 1
    assert np.allclose(image.permute(1, 2, 0), (pixels / 255 - MEAN) / STD, atol=1e-5)
    assert "12 training and 6 evaluation images of 3 classes" in data.description


def test_basic_augmentation_crops_and_flips(folder):
    data = load(folder, augment="basic")
    plain = data.train_eval[5][0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    padded = torch.nn.functional.pad(plain, (1, 1, 1, 1)).mul(255).round().int()
    variants = {}
    for y in range(3):
        for x in range(3):
            crop = padded[:, y : y + 8, x : x + 8]
            variants |= {crop.numpy().tobytes(): (y, x, False), crop.flip(2).numpy().tobytes(): (y, x, True)}
    seen = set()
    for epoch in range(150):
        image = SeededDataset(data.train, 0, epoch)[5][0]
        raw = (image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).mul(255).round().int()
        seen.add(variants[raw.numpy().tobytes()])
    assert len(seen) == 18


def test_a_small_split_is_decoded_once(folder, monkeypatch):
    data, read = load(folder), []
    decode = Source.image
    monkeypatch.setattr(Source, "image", lambda self, index: read.append((self.where, index)) or decode(self, index))
    first = [data.test[index][0] for index in (1, 0, 1)]
    assert len(read) == 2
    assert torch.equal(data.test[1][0], first[0])
    assert len(read) == 2
    monkeypatch.setattr("usdcore_data.folders.HELD_BYTES", 0)
    assert torch.equal(load(folder).test[1][0], first[0])


@pytest.mark.parametrize("augment", ["none", "basic", "deit"])
def test_the_cache_changes_nothing(folder, augment):
    options = config(folder, augment=augment)
    plain, cached = load(folder, augment=augment), load(folder, augment=augment, cache=True)
    assert torch.equal(batches(plain, options), batches(cached, options))
    assert torch.equal(plain.test[2][0], cached.test[2][0])
    assert plain.fingerprint == cached.fingerprint


@pytest.mark.parametrize(("augment", "size"), [("basic", 8), ("deit", 8), ("basic", 72), ("deit", 72)])
def test_augmentation_can_be_replayed(folder, augment, size):
    options = config(folder, augment=augment, input_size=size)
    data = TimmData(options).load()
    first = batches(data, options)
    assert first.shape == (12, 3, size, size)
    assert torch.equal(first, batches(data, options))
    assert not torch.equal(first, batches(data, options, epoch=1))
    assert torch.equal(data.train_eval[0][0], data.train_eval[0][0])


def test_augmenting_without_seeds_follows_the_global_generator(folder):
    data = load(folder, augment="basic").train
    torch.manual_seed(0)
    first = [data[0][0] for _ in range(6)]
    torch.manual_seed(0)
    assert all(torch.equal(image, data[0][0]) for image in first)
    assert len({image.numpy().tobytes() for image in first}) > 1


def test_the_strongest_deit_augmentation_runs(folder):
    transform = _training_transform(config(folder, augment="deit", input_size=72))
    image = Image.open(folder / "train" / "cat" / "0.png")
    (policy,) = [step for step in transform.transforms if hasattr(step, "ops")]
    for operation in policy.ops:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
        assert operation(image).size == (8, 8)


def test_images_of_any_shape_are_resized(folder):
    Image.new("L", (20, 31)).save(folder / "test" / "cat" / "9.png")
    data = load(folder, cache=True, input_size=12)
    assert {tuple(image.shape) for image, _ in data.test} == {(3, 12, 12)}


def test_subsets_are_fixed_and_keep_all_classes(folder):
    data, again, full = load(folder, subset=5, eval_subset=2), load(folder, subset=5), load(folder)
    assert (len(data.train), len(data.train_eval), len(data.test)) == (5, 5, 2)
    assert data.num_classes == 3
    assert torch.equal(data.train[4][0], again.train[4][0])
    assert len(load(folder, subset=50).train) == 12
    assert len({part.fingerprint for part in (data, again, full)}) == 3


def test_the_fingerprint_follows_the_files(folder):
    before = load(folder).fingerprint
    assert load(folder).fingerprint == before
    write_image(folder / "train" / "cat" / "0.png", size=9)
    assert load(folder).fingerprint != before


def test_the_split_has_usual_spellings(folder):
    (folder / "train").rename(folder / "training")
    (folder / "test").rename(folder / "val")
    assert len(load(folder, eval_split="validation").test) == 6


def test_sorting_by_class_decodes_nothing(folder):
    data = load(folder)
    (folder / "test" / "cat" / "0.png").write_bytes(b"broken")
    assert len(eval_loader(data.test, 2, seed=0, sort_by_class=True)) == 3


def test_torchvision_data(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 4)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = struct.pack(">HBBIII", 0, 8, 3, count, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">HBBI", 0, 8, 1, count) + bytes(range(count)))
    data = load(tmp_path, name="torch/mnist", input_size=28, cache=True)
    assert (len(data.train), len(data.test), data.num_classes, data.in_chans) == (6, 4, 10, 3)
    assert data.test[3][1] == 3
    assert load(tmp_path, name="torch/mnist", input_size=28).fingerprint == data.fingerprint
    assert load(tmp_path, name="torch/mnist", input_size=28, subset=5).fingerprint != data.fingerprint
    with pytest.raises(UsdcoreError, match=r"data.train_split: torch/mnist has no split 'trian'; did you mean 'train'"):
        load(tmp_path, name="torch/mnist", train_split="trian")


# Mistakes


def message(root, **options):
    with pytest.raises(UsdcoreError) as caught:
        load(root, **options)
    return str(caught.value)


def test_a_missing_folder(tmp_path):
    assert message(tmp_path / "nowhere").startswith(f"data.root: there is no folder {tmp_path / 'nowhere'}; check")


def test_a_missing_split_is_never_taken_from_another(folder):
    text = message(folder, eval_split="validation")
    assert text.startswith(f"data.eval_split: {folder} has no folder validation or val")
    assert "it has test, train" in text


def test_an_empty_split(folder):
    (folder / "val").mkdir()
    assert f"no images in {folder / 'val'}" in message(folder, eval_split="val")


def test_images_without_class_folders(folder):
    write_image(folder / "val" / "a.png")
    assert f"{folder / 'val' / 'a.png'} is in no class folder" in message(folder, eval_split="val")


def test_different_classes(folder):
    write_image(folder / "test" / "fox" / "0.png")
    text = message(folder)
    assert f"only in {folder / 'train'}: none" in text
    assert f"only in {folder / 'test'}: fox" in text


def test_an_unreadable_image_names_its_file(folder):
    broken = folder / "train" / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    assert f"can't read the image {broken}" in message(folder, cache=True)
    data = load(folder)
    with pytest.raises(UsdcoreError, match=r"dog/2\.png"):
        list(train_loader(data, config(folder, workers=1), 0, 0))


def test_a_link_to_nothing_names_its_file(folder):
    link = folder / "test" / "eel" / "7.png"
    link.symlink_to(folder / "gone.png")
    assert f"can't read the image {link}" in message(folder)


def test_torchvision_data_that_is_not_there(tmp_path):
    text = message(tmp_path, name="torch/cifar10")
    assert "can't open torch/cifar10, split train" in text
    assert "data.download: true would fetch it" in text
    assert "download" not in message(tmp_path, name="torch/cifar1000")
    assert "leave name out" in message(tmp_path, name="torch/image_folder")


def test_a_package_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in message(tmp_path, name="hfds/some")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"cache": True, "input_size": 224}, "cache is for input_size up to 64"),
        ({"root": None}, "root is missing"),
        ({"name": "wds/x"}, "class folders"),
        ({"name": "cifar10"}, "torch/NAME"),
        ({"augment": "shift"}, "augment"),
        ({"std": (0.1, 0.0, 0.1)}, "greater than 0"),
        ({"subset": 1}, "greater than or equal to 2"),
    ],
)
def test_options_that_are_refused_without_looking_at_data(options, text):
    with pytest.raises(ValidationError, match=text):
        config(Path("anywhere"), **options) if "root" not in options else config(**options)

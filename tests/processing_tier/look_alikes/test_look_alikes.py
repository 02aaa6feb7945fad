"""Fingerprints of images, the search for near ones, and the command tier-prepare --check."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, ImageOps

import prepare_tier
from processing_tier.look_alikes import pairs
from processing_tier.look_alikes.fingerprints import HASH_BYTES, extremes, fingerprint, perceptual_hash
from processing_tier.look_alikes.neighbours import MAX_DISTANCE, cut, distances, near_pairs
from processing_tier.phantom.dataset import make_phantom
from processing_tier.radiograph_tier import read_radiograph

NIH = Path(__file__).resolve().parents[4] / "shared" / "data" / "nih_cxr14"


@pytest.fixture(scope="module")
def chests() -> list[Image.Image]:
    return [read_radiograph(image) for image in make_phantom(12, split="train", image_size=256)["image"]]


def bits_between(first: Image.Image, second: Image.Image) -> int:
    """The fewest bits in which two hashes of the images differ."""
    one, other = fingerprint(first).hashes, fingerprint(second).hashes
    return min(int(distances(a[None], b[None])[0]) for a in one for b in other)


def as_jpeg(image: Image.Image, quality: int = 50) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "change",
    [
        as_jpeg,
        lambda image: image.resize((112, 112), Image.Resampling.BILINEAR),
        lambda image: image.point([int(255 * (level / 255) ** 0.7) for level in range(256)]),
        ImageOps.equalize,
        lambda image: ImageOps.expand(image, 20, 0),
    ],
)
def test_copies_are_near(chests, change):
    assert max(bits_between(chest, change(chest)) for chest in chests) <= MAX_DISTANCE


def test_the_order_of_grey_levels_alone_decides(chests):
    for chest in chests[:3]:
        levels = np.asarray(chest.resize((64, 64), Image.Resampling.BOX)) // 2
        dark, bright = (Image.fromarray(changed.astype(np.uint8)) for changed in (levels, levels + 100))
        np.testing.assert_array_equal(perceptual_hash(dark), perceptual_hash(bright))


def test_mirrored_and_inverted_images_are_far(chests):
    for chest in chests[:3]:
        assert bits_between(chest, ImageOps.invert(chest)) > 200
        assert bits_between(chest, ImageOps.mirror(chest)) > 60


def test_borders_and_marks(chests):
    plain = chests[0].crop((20, 20, 236, 236))
    assert fingerprint(ImageOps.expand(plain, 24, 0)).border >= 24 / 264
    assert len(fingerprint(ImageOps.expand(plain, 24, 0)).hashes) == 2
    smooth = Image.radial_gradient("L").point(lambda level: 40 + level // 2)
    assert not fingerprint(smooth).marked
    marked = smooth.copy()
    for x in range(10, 60, 8):  # strokes of letters
        ImageDraw.Draw(marked).line((x, 12, x, 26), fill=255, width=3)
    assert fingerprint(marked).marked
    inside = smooth.copy()
    for x in range(100, 150, 8):
        ImageDraw.Draw(inside).line((x, 120, x, 134), fill=255, width=3)
    assert not fingerprint(inside).marked
    blank = fingerprint(Image.new("L", (64, 64), 7))
    assert blank.hashes.shape == (1, HASH_BYTES) and blank.border == 0 and not blank.marked


def test_extremes_are_those_of_the_square():
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31)).astype(np.uint8)
    for width in (3, 5, 7, 8, 9):
        reach = (width - 1) // 2
        padded = np.pad(pixels, reach, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1, 2 * reach + 1))
        np.testing.assert_array_equal(extremes(pixels, width, np.minimum), windows.min(axis=(2, 3)))
        np.testing.assert_array_equal(extremes(pixels, width, np.maximum), windows.max(axis=(2, 3)))


def brute_force(hashes: np.ndarray) -> tuple[list, list]:
    bits = np.unpackbits(hashes, axis=1).astype(int)
    apart = np.abs(bits[:, None] - bits[None]).sum(axis=2)
    first, second = np.nonzero(np.triu(apart <= MAX_DISTANCE, 1))
    return np.stack([first, second], axis=1).tolist(), apart[first, second].tolist()


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_what_comparing_all_finds(seed):
    generator = np.random.default_rng(seed)
    originals = generator.integers(0, 2, (40, 256))
    rows = [originals]
    for flips in (1, 12, 23, 24, 25, 30):  # also at the limit, spread over all chunks, and beyond it
        changed = originals.copy()
        for row in changed:
            row[generator.permutation(256)[:flips]] ^= 1
        rows.append(changed)
    even = originals.copy()
    even[:, :24] ^= 1  # neighbours, which lie in different chunks
    hashes = np.unique(np.packbits(np.concatenate([*rows, even]), axis=1), axis=0)
    expected, apart = brute_force(hashes)
    found, distance = near_pairs(hashes)
    assert found.tolist() == expected and distance.tolist() == apart and len(expected) > 150


@pytest.mark.slow
def test_search_of_nothing_and_with_a_limit():
    found, distance = near_pairs(np.empty((0, HASH_BYTES), dtype=np.uint8))
    assert found.shape == (0, 2) and distance.shape == (0,)
    alike = np.packbits(np.eye(256, dtype=np.uint8), axis=1)  # each differs from each in 2 bits
    assert len(near_pairs(alike)[0]) == 256 * 255 // 2
    assert 100 < len(near_pairs(alike, most=100)[0]) <= 256 * 255 // 2


def test_rows_are_cut_at_the_limit(monkeypatch):
    monkeypatch.setattr("processing_tier.look_alikes.neighbours.AT_ONCE", 10)
    counts = np.array([0, 4, 6, 1, 30, 0, 0, 2])
    assert [(part.start, part.stop) for part in cut(counts)] == [(0, 3), (3, 4), (4, 5), (5, 8)]
    assert list(cut(np.zeros(3, dtype=int))) == []


def write(folder: Path, name: str, split: str, images: list, patients: list, texts: list) -> Path:
    """An image folder with this split beside those that it has."""
    target = folder / name / split
    target.mkdir(parents=True)
    for i, image in enumerate(images):
        image.save(target / f"{i}.png")
    files = [f"{i}.png" for i in range(len(images))]
    ids = [f"{split}{i}" for i in range(len(images))]
    frame = pd.DataFrame({"file_name": files, "image_id": ids, "patient_id": patients, "text": texts})
    frame.to_csv(target / "metadata.csv", index=False)
    return folder / name


LONG = "The heart is enlarged. " * 10


@pytest.fixture
def data(tmp_path, chests) -> tuple[str, str]:
    """A copy across splits, another across data sets, one in a split and one of a patient; a report in two splits."""
    train = [chests[0], chests[1], chests[2], chests[2], chests[3], chests[3].copy()]
    texts = [LONG, "Normal.", "", "", "Large heart", "x y"]
    mine = write(tmp_path, "mine", "train", train, ["p0", "p1", "p2", "=p2", "p3", "p3"], texts)
    write(tmp_path, "mine", "test", [as_jpeg(chests[0]), chests[4]], ["p4", "p1"], [LONG.upper(), "normal"])
    small = chests[1].resize((128, 128))
    other = write(tmp_path, "other", "train", [small, chests[5]], ["p0", "q1"], ["Fracture.", "Clear."])
    return str(mine), str(other)


def run(*arguments, capsys) -> str:
    prepare_tier.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def numbers(text: str, row: str) -> list[int]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [int(cell) for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize("workers", [1, 2])
def test_check_finds_each_leak(data, tmp_path, capsys, workers):
    text = run(
        "--check", *data, "--output_dir", tmp_path / "out", "--num_workers", workers, "--views", "all", capsys=capsys
    )
    assert numbers(text, "images") == [2, 6, 2]  # test, train; train
    assert numbers(text, "look-alike images of two data sets")[::2] == [1, 2]
    assert numbers(text, "look-alike images of two splits")[::2] == [1, 2]
    assert numbers(text, "look-alike images of two patients of a split") == [1, 1, 2]
    assert numbers(text, "look-alike images of one patient") == [1, 1, 2]
    assert numbers(text, "the same report in two splits") == [2, 1]
    assert numbers(text, "the same report in two data sets") == [0, 0]
    assert "1 patient is in two splits of one data set." in text  # p1; p0 of the other data is another person
    rows = list(csv.DictReader((tmp_path / "out" / "look_alikes.csv").open(encoding="utf-8")))
    found = {frozenset((row["image_id_a"], row["image_id_b"])) for row in rows if row["relation"] == "two splits"}
    assert found == {frozenset(("train0", "test0")), frozenset(("train1", "test1"))}  # image and report; report
    one = next(row for row in rows if row["relation"] == "two patients of a split")
    assert {one["patient_id_a"], one["patient_id_b"]} == {"p2", "'=p2"} and one["distance"] == "0"
    assert LONG.split(".")[0] not in (tmp_path / "out" / "look_alikes.csv").read_text()
    assert os.listdir(tmp_path / "out") == ["look_alikes.csv"]


def test_unreadable_and_blank_images_are_counted(tmp_path, chests, capsys):
    folder = write(tmp_path, "mine", "train", [chests[0], Image.new("L", (64, 64)), chests[1]], [1, 2, 3], ["a"] * 3)
    (folder / "train" / "2.png").write_bytes(b"no image")
    text = run("--check", folder, "--num_workers", 1, "--views", "all", capsys=capsys)
    assert numbers(text, "cannot be read") == [1] and numbers(text, "all pixels equal") == [1]
    assert "Wrote" not in text


def test_too_many_pairs_are_cut(tmp_path, chests, capsys, monkeypatch):
    monkeypatch.setattr(pairs, "MAX_PAIRS", 5)
    folder = write(tmp_path, "mine", "train", [chests[0]] * 6, range(6), [""] * 6)
    text = run("--check", folder, "--num_workers", 1, "--views", "all", capsys=capsys)
    assert numbers(text, "look-alike images of two patients of a split")[0] == 5
    assert "pairs look alike; only the first ones found are counted." in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--check", "missing"], "missing"),
        (["--check", "{data}", "{data}"], "--check names the same data twice; name each once."),
        (["--check", "{data}", "--size", "256"], "--size has no effect with --check; leave it out."),
        (["--check", "{data}", "--data", "x"], "--data has no effect with --check; leave it out."),
        (["--check", "{data}", "--splits", "tset"], "None of the data has the split 'tset'; choose others"),
        (["--check", "{data}", "--num_workers", "0"], "--num_workers 0 must be at least 1."),
        (["--data", "{data}"], "the following arguments are required: --output_dir"),
        ([], "the following arguments are required: --data, --output_dir"),
    ],
)
def test_bad_input_is_one_sentence(data, capsys, arguments, error):
    with pytest.raises(SystemExit) as exit_:
        prepare_tier.main([argument.replace("{data}", data[0]) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2 and len(lines) == 1 and error in lines[0]


def test_images_that_cannot_be_read_at_all(tmp_path, chests, capsys):
    folder = write(tmp_path, "mine", "train", [chests[0]], [1], ["a"])
    (folder / "train" / "0.png").write_bytes(b"no image")
    with pytest.raises(SystemExit) as exit_:
        prepare_tier.main(["--check", str(folder), "--num_workers", "1", "--views", "all"])
    assert exit_.value.code == 2 and "None of the 1 images can be read; the first: " in capsys.readouterr().err


@pytest.mark.skipif(not NIH.is_dir(), reason="shared/data is absent")
def test_different_people_are_far_apart():
    files = sorted((NIH / "validation").glob("*.jpg"))
    people = {path.name.split("_")[0]: path for path in files}  # one image each
    hashes = np.stack([perceptual_hash(read_radiograph(path)) for path in people.values()])
    bits = np.unpackbits(hashes, axis=1).astype(int)
    apart = np.abs(bits[:, None] - bits[None]).sum(axis=2)[np.triu_indices(len(bits), 1)]
    assert len(apart) > 5000 and apart.min() > 1.5 * MAX_DISTANCE

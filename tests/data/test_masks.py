"""Masks: found beside the images or estimated, seen with the geometry that the model sees."""

from concurrent.futures import ThreadPoolExecutor

import albumentations as A
import cv2
import numpy as np
import pytest
from albumentations.pytorch import ToTensorV2
from PIL import Image

from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.masks import estimate_mask, load_mask, mask_files
from fish_lightning.data.sample.generate import make_sample
from fish_lightning.data.sample.recipe import Recipe
from fish_lightning.data.sources import ArchiveSource, FolderSource

SQUASH = A.Compose([A.Resize(height=20, width=30), ToTensorV2()])


@pytest.fixture
def mask_file(tmp_path):
    """``mask_file(array)`` saves a mask and returns its path."""

    def save(array, name="mask.png"):
        Image.fromarray(array).save(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def half():
    """A mask of 40x60 whose left half is object."""
    mask = np.zeros((40, 60), np.uint8)
    mask[:, :30] = 255
    return mask


def test_masks_of_the_archive_are_found_beside_the_images(tmp_path, make_archive):
    catalog = ArchiveSource(make_archive(tmp_path)).read()
    files = mask_files(catalog, [4, 0])
    folder = tmp_path / "Fish_Dataset" / "Fish_Dataset"
    assert list(files) == [4, 0]
    assert files[0] == folder / "Sea Bass" / "Sea Bass GT" / "00001.png"
    assert files[4] == folder / "Trout" / "Trout GT" / "00002.png"


def test_images_without_a_mask_are_left_out(tmp_path, make_folder, make_image):
    make_folder(tmp_path, ["bass", "eel"], per_class=2, suffix=".JPG")
    make_image(tmp_path / "eel GT" / "001.PNG", (0, 0, 0), 0)
    make_image(tmp_path / "eel GT" / "099.png", (0, 0, 0), 0)
    catalog = FolderSource(tmp_path).read()
    assert mask_files(catalog, np.arange(4)) == {3: tmp_path / "eel GT" / "001.PNG"}


def test_a_catalog_of_single_files_has_no_masks(tmp_path, make_image, monkeypatch):
    from fish_lightning.data.listing import input_catalog

    monkeypatch.chdir(tmp_path)
    make_image(tmp_path / "a.png", (0, 0, 0), 0)
    assert mask_files(input_catalog("a.png", ["bass", "eel"]), [0]) == {}


@pytest.mark.parametrize("brightest", [255, 200, 1])
def test_a_mask_is_true_on_the_object(mask_file, half, brightest):
    mask = load_mask(mask_file(half // 255 * np.uint8(brightest)), SQUASH)
    assert mask.shape == (20, 30) and mask.dtype == bool
    assert mask[:, :15].all() and not mask[:, 15:].any()


def test_empty_and_full_masks_stay_so(mask_file, half):
    assert not load_mask(mask_file(half * 0), SQUASH).any()
    assert load_mask(mask_file(half * 0 + 255), SQUASH).all()


@pytest.mark.parametrize("mode", ["1", "RGB", "P"])
def test_masks_may_have_any_mode(tmp_path, half, mode):
    Image.fromarray(half).convert(mode).save(tmp_path / "mask.png")
    assert load_mask(tmp_path / "mask.png", SQUASH)[:, :15].all()


def test_a_mask_is_cropped_and_resized_as_its_image_without_new_values(mask_file, half):
    half[10:30, 20:50] = 255
    transform = A.Compose([A.SmallestMaxSize(30), A.CenterCrop(24, 24), A.Normalize(), ToTensorV2()])
    image = np.repeat(half[..., None], 3, 2)
    seen = transform(image=image)["image"][0].numpy()
    mask = load_mask(mask_file(half), transform)
    assert mask.shape == (24, 24)
    assert ((seen > 0) == mask).mean() > 0.95  # but for the interpolation of edges


def test_an_unreadable_mask_is_named(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"no image")
    with pytest.raises(UnreadableImage, match=r"mask\.png"):
        load_mask(tmp_path / "mask.png", SQUASH)


def test_the_sample_data_has_a_mask_of_each_fish(tmp_path):
    make_sample(tmp_path / "set", Recipe(photographs_per_kind=1, copies=1))
    catalog = ArchiveSource(tmp_path / "set").read()
    files = mask_files(catalog, np.arange(len(catalog)))
    assert list(files) == list(range(9))
    for index, file in files.items():
        mask = load_mask(file, A.Compose([A.Resize(height=89, width=118)]))
        image = cv2.resize(decode(catalog.root / catalog.paths[index]), (118, 89)).astype(float)
        rim = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~mask
        assert 0.01 < mask.mean() < 0.5
        assert np.abs(image[mask].mean(0) - image[rim].mean(0)).max() > 15  # the fish is not of the board's color


def photograph(path, background, center=(48, 70), size=(60, 90)):
    """Write an image of 96x140 with an orange ellipse on a board with noise; return where the ellipse is."""
    noise = np.random.default_rng(0).normal(0, 6, (96, 140, 3))
    rows, columns = np.mgrid[:96, :140]
    place = ((rows - center[0]) / (size[0] / 2)) ** 2 + ((columns - center[1]) / (size[1] / 2)) ** 2 < 1
    pixels = np.where(place[:, :, None], (210, 130, 60), background) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return place


@pytest.mark.parametrize("settings", [{}, {"center": (40, 60), "size": (30, 80)}, {"size": (80, 30)}])
def test_a_mask_is_estimated_where_there_is_none(tmp_path, settings):
    place = photograph(tmp_path / "1.png", (50, 80, 150), **settings)
    mask = estimate_mask(tmp_path / "1.png")
    assert mask.shape == (96, 128, 3) and set(np.unique(mask)) == {0, 255}
    found = cv2.resize(mask[:, :, 0], (140, 96)) > 127
    assert (found & place).sum() / (found | place).sum() > 0.85
    with ThreadPoolExecutor(1) as pool:  # whose random numbers are its own
        assert (pool.submit(estimate_mask, tmp_path / "1.png").result() == mask).all()


@pytest.mark.parametrize("color", [(0, 0, 0), (50, 80, 150)])
def test_an_image_without_an_object_has_an_empty_mask(tmp_path, color):
    Image.new("RGB", (140, 96), color).save(tmp_path / "1.png")
    assert not estimate_mask(tmp_path / "1.png").any()

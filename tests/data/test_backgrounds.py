"""Objects on other backgrounds: the same for a key, the object unchanged, and only where masks are known."""

import cv2
import numpy as np
import pytest
from PIL import Image

from fish_lightning.data.backgrounds import FRINGE, mean_color, painted_over, recolored
from fish_lightning.errors import UserError

COLORS = [(200, 60, 60), (60, 180, 70), (60, 70, 200)]


def make_masked(root, per_class=12, masks=True):
    """Three classes whose background is the class's color; the object is a white square at a place of its own."""
    for label, color in enumerate(COLORS):
        for number in range(per_class):
            pixels = np.full((32, 32, 3), color, np.uint8)
            mask = np.zeros((32, 32), np.uint8)
            place = slice(4 + number, 12 + number)
            pixels[place, place], mask[place, place] = 255, 255
            for folder, content in ((f"class {label}", pixels), (f"class {label} GT", mask))[: 1 + masks]:
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / folder / f"{number:03}.png")
    return root


def pixels_of(items):
    return np.stack([item["image"].permute(1, 2, 0).numpy() for item in items])


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return make_masked(tmp_path_factory.mktemp("masked"))


@pytest.fixture
def images_of(masked, tmp_path, make_data):
    """``images_of(share)``: the training images of an epoch, (N, 32, 32, 3), their labels and those as they are."""
    import albumentations as A

    plain = A.Compose([A.Resize(32, 32), A.ToTensorV2()])

    def images(share, epoch=0, **settings):
        settings = {"cache": "on", "cache_dir": tmp_path, "train_transform": plain} | settings
        data = make_data(masked, backgrounds=share, **settings)
        changed, original = data.dataset("train", train=True), data.dataset("train")
        items = [changed[epoch, i] for i in range(len(changed))]
        as_they_are = [original[epoch, i] for i in range(len(original))]
        return pixels_of(items), np.array([item["label"] for item in items]), pixels_of(as_they_are)

    return images


def test_the_object_stays_and_its_background_is_that_of_any_class(images_of):
    seen, labels, original = images_of(1.0)
    is_object = (original == 255).all(3)
    assert (seen[is_object] == 255).all() and (seen[~is_object].max(1) < 255).all()
    corners = [COLORS.index(tuple(image[0, 0].tolist())) for image in seen]
    for label in range(3):
        assert len(set(np.array(corners)[labels == label])) > 1  # the color does not tell the class
    away = np.abs(seen[~is_object][:, None].astype(int) - COLORS).max(2).min(1)
    assert away.max() <= 3  # the other object is gone


def test_a_share_of_the_images_is_changed_and_each_epoch_differs(images_of):
    whole, _, original = images_of(1.0)
    half, _, _ = images_of(0.5)
    changed = [(images != original).any((1, 2, 3)) for images in (half, whole)]
    assert 0.2 < changed[0].mean() < changed[1].mean()
    assert (half[changed[0]] == whole[changed[0]]).all()
    assert (images_of(1.0, epoch=1)[0] != whole).any()
    assert (images_of(1.0)[0] == whole).all() and (images_of(1.0, cache="ram")[0] == whole).all()


def test_validation_images_keep_their_backgrounds(masked, tmp_path, make_data):
    data = make_data(masked, backgrounds=1.0, cache="on", cache_dir=tmp_path)
    assert data.train_dataloader().dataset.backgrounds is not None
    assert data.val_dataloader().dataset.backgrounds is None and data.dataset("train").backgrounds is None


def test_an_image_without_a_usable_mask_stays_as_it_is(tmp_path, make_data):
    root = make_masked(tmp_path / "photos", 6)
    (root / "class 0 GT" / "001.png").unlink()
    (root / "class 1 GT" / "001.png").write_bytes(b"")
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(root / "class 2 GT" / "001.png")
    data = make_data(root, backgrounds=1.0, cache="on", cache_dir=tmp_path)
    paste, pixels = data.dataset("train", train=True).backgrounds, data.pixels
    maskless = [i for i, path in enumerate(data.catalog.paths) if path.endswith("001.png")]
    for index in maskless:
        for epoch in range(5):
            assert (paste(pixels[index], epoch, index) == pixels[index]).all()
    masked = [i for i in data.catalog.indices("train").tolist() if i not in maskless]
    assert any((paste(pixels[i], 0, i) != pixels[i]).any() for i in masked)


def test_an_image_with_nothing_but_the_fringe_around_its_object_gives_no_background(tmp_path, make_data):
    root = make_masked(tmp_path / "photos", 6)
    mask = np.full((32, 32), 255, np.uint8)
    mask[:2] = 0
    for file in root.glob("* GT/*.png"):
        Image.fromarray(mask).save(file)
    data = make_data(root, backgrounds=1.0, cache="on", cache_dir=tmp_path)
    paste, pixels = data.dataset("train", train=True).backgrounds, data.pixels
    for index in data.catalog.indices("train").tolist():
        assert (paste(pixels[index], 0, index) == pixels[index]).all()


def test_where_no_masks_are_known_it_is_refused(tmp_path, make_data):
    root = make_masked(tmp_path / "photos", 6, masks=False)
    with pytest.raises(UserError, match=r"requires masks of 2 training images or more: .* has 0"):
        make_data(root, backgrounds=0.5, cache="on", cache_dir=tmp_path)
    with pytest.raises(UserError, match="requires augment=cpu"):
        make_data(root, backgrounds=0.5, cache="off")


def test_an_object_is_painted_over_with_what_surrounds_it():
    pixels, mask = np.full((20, 40, 3), 10, np.uint8), np.zeros((20, 40), np.uint8)
    pixels[:, 20:] = 40  # the right half is brighter
    shown = pixels.copy()
    for place in ((slice(8, 12), slice(6, 10)), (slice(8, 12), slice(30, 34))):  # an object on each half
        shown[place], mask[place] = 255, 1
        shown[place[0], place[1].stop] = 200  # and its fringe, outside the mask
    assert np.abs(painted_over(shown, cv2.dilate(mask, FRINGE)).astype(int) - pixels).max() <= 2  # OpenCV dithers
    assert shown.max() == 255  # the image itself is unchanged


def test_a_mean_color_counts_neither_the_object_nor_black_corners():
    pixels, mask = np.full((10, 10, 3), (20, 100, 200), np.uint8), np.zeros((10, 10), np.uint8)
    pixels[:3, :3], pixels[4:6, 4:6], mask[4:6, 4:6] = 5, 255, 1
    assert mean_color(pixels, mask).tolist() == [20, 100, 200]
    assert mean_color(np.zeros_like(pixels), mask).tolist() == [1, 1, 1]  # nothing is counted


def test_a_background_is_recolored_within_bounds():
    pixels = np.full((2, 2, 3), (20, 100, 200), np.uint8)
    seen = recolored(pixels, np.array([20.0, 100.0, 200.0]), np.array([30.0, 300.0, 10.0]))
    assert (seen == (30, 200, 100)).all()  # 1.5 times; 3 and 0.05 are out of bounds
    assert (recolored(pixels, np.array([1.0, 1, 1]), np.array([2.0, 2, 2])) == (40, 200, 255)).all()


def test_matched_backgrounds_have_the_color_of_the_image_whose_object_they_get(images_of):
    seen, _, original = images_of(1.0, match_colors=True)
    plain, _, _ = images_of(1.0)
    assert (plain != original).any()
    gains = np.clip(original[:, 0, 0] / plain[:, 0, 0].astype(float), 0.5, 2.0)
    assert (np.abs(seen[:, 0, 0] - gains * plain[:, 0, 0]) <= 1).all()
    assert np.abs(seen.astype(int) - original).mean() < np.abs(plain.astype(int) - original).mean() / 2


def test_masks_are_estimated_where_no_masks_are_known(tmp_path, make_data, capsys):
    rows, columns = np.mgrid[:48, :64]
    place = ((rows - 24) / 12) ** 2 + ((columns - 32) / 20) ** 2 < 1
    boards = [(40, 60, 150), (60, 140, 70), (120, 120, 130)]
    rng = np.random.default_rng(0)
    for label, board in enumerate(boards):
        for number in range(8):
            pixels = np.where(place[:, :, None], (220, 120, 40), board) + rng.normal(0, 5, (48, 64, 3))
            (tmp_path / "photos" / f"class {label}").mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(tmp_path / "photos" / f"class {label}" / f"{number:03}.png")
    data = make_data(
        tmp_path / "photos", backgrounds=1.0, estimate_masks=True, cache="on", cache_dir=tmp_path / "cache"
    )
    assert "estimating 15 masks at" in capsys.readouterr().out
    paste, pixels = data.dataset("train", train=True).backgrounds, data.pixels
    seen = [(int(data.catalog.labels[i]), paste(pixels[i], 0, i)) for i in data.catalog.indices("train").tolist()]
    for _, image in seen:
        height, width = image.shape[:2]
        middle = image[height // 2, width // 2].astype(int)
        assert middle == pytest.approx((220, 120, 40), abs=30)  # the object stays
    nearest = [np.abs(np.array(boards) - image[:4, :4].mean((0, 1))).sum(1).argmin() for _, image in seen]
    assert sum(own != board for (own, _), board in zip(seen, nearest, strict=True)) > len(seen) / 3

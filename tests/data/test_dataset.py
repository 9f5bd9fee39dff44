"""One image from file to tensor: decoded from any format, augmented by (seed, epoch, index) alone."""

from itertools import chain

import albumentations as A
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader

from fish_lightning.data.dataset import UNREADABLE, FishDataset, KeyedBatches, KeyedRandomness, start_worker
from fish_lightning.data.decoding import UnreadableImage, decode
from fish_lightning.data.keys import keyed_seed
from fish_lightning.data.sources import FolderSource
from fish_lightning.errors import UserError


@pytest.fixture(scope="module")
def catalog(make_folder, tmp_path_factory):
    return FolderSource(make_folder(tmp_path_factory.mktemp("photos"), 2, 6)).read()


def augmented(catalog, seed=42, on_error="raise"):
    pipeline = A.Compose([A.Resize(24, 32), A.Rotate((-35, 35), p=1.0), A.HorizontalFlip(p=0.5), ToTensorV2()])
    return FishDataset(catalog, catalog.indices("all"), pipeline, seed, on_error)


def epoch_of(dataset, epoch, workers):
    """Load the images (N, 3, H, W) of one epoch in catalog order."""
    batches = KeyedBatches(len(dataset), 4)
    batches.set_epoch(epoch)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, worker_init_fn=start_worker)
    return torch.cat([batch["image"] for batch in loader])


def gradient(height=40, width=60):
    """Return smooth RGB pixels with different corners."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * x / (width - 1), 255 * y / (height - 1), np.full_like(x, 90)], axis=2).astype(np.uint8)


def gray(pixels):
    return np.asarray(Image.fromarray(pixels).convert("L"))


def test_rgb_pixels_are_decoded_as_saved(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    pixels = decode(tmp_path / "a.png")
    assert pixels.shape == (40, 60, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, gradient())
    assert pixels.flags.writeable  # else torch warns about tensors that share read-only memory


def test_gray_is_repeated_in_three_channels(tmp_path):
    Image.fromarray(gray(gradient())).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), np.repeat(gray(gradient())[..., None], 3, axis=2))


def test_palette_is_applied(tmp_path):
    image = Image.fromarray(gradient()).quantize(200)
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.array_equal(decode(tmp_path / "a.png"), np.asarray(image.convert("RGB")))
    assert np.abs(decode(tmp_path / "a.png").astype(int) - gradient()).mean() < 10


def test_alpha_channel_is_dropped_and_colors_are_kept(tmp_path):
    rgba = np.dstack([gradient(), np.full((40, 60), 7, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png"), gradient())


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_is_converted_and_not_inverted(tmp_path, suffix):
    Image.fromarray(gradient()).convert("CMYK").save(tmp_path / f"a.{suffix}")
    assert Image.open(tmp_path / f"a.{suffix}").mode == "CMYK"
    assert np.abs(decode(tmp_path / f"a.{suffix}").astype(int) - gradient()).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_gray_is_scaled_and_not_clipped(tmp_path, suffix):
    wide = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    Image.fromarray(wide).save(tmp_path / f"a.{suffix}")
    pixels = decode(tmp_path / f"a.{suffix}")
    assert pixels.shape == (40, 60, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[..., 0] - wide / 257.0).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(gradient())
    stored = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    (upright.transpose(stored) if stored is not None else upright).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png"), gradient())


def test_empty_text_and_missing_files_are_unreadable_and_named(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(UnreadableImage) as error:
        decode(tmp_path / "empty.png")
    assert str(error.value) == f"{tmp_path / 'empty.png'}: an empty file"
    with pytest.raises(UnreadableImage) as error:
        decode(tmp_path / "text.jpg")
    assert str(error.value) == f"{tmp_path / 'text.jpg'}: not an image (PNG, JPEG, WebP, BMP or TIFF)"
    with pytest.raises(UnreadableImage, match="missing"):
        decode(tmp_path / "missing.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_truncated_file_is_unreadable_and_named(tmp_path, suffix):
    Image.fromarray(gradient()).filter(ImageFilter.GaussianBlur(1)).save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    for percent in (5, 20, 50, 80):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(data[: len(data) * percent // 100])
        with pytest.raises(UnreadableImage) as error:
            decode(cut)
        assert str(error.value).startswith(f"{cut}: ") and len(str(error.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about corrupt TIFF tags
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_corrupt_file_is_decoded_or_unreadable_and_never_a_crash(tmp_path, suffix):
    Image.fromarray(gradient()).save(tmp_path / f"whole.{suffix}")
    data = np.frombuffer((tmp_path / f"whole.{suffix}").read_bytes(), np.uint8)
    rng = np.random.default_rng(5)
    named = 0
    for _ in range(60):
        broken = data.copy()
        broken[rng.integers(0, min(len(data), 400), 6)] = rng.integers(0, 256, 6)
        (tmp_path / f"broken.{suffix}").write_bytes(broken.tobytes())
        try:
            assert decode(tmp_path / f"broken.{suffix}").shape[2] == 3
        except UnreadableImage as error:
            named += f"broken.{suffix}: " in str(error)
    assert named > 0


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match=r"a\.png: more than 200 million pixels"):
        decode(tmp_path / "a.png")


def test_item_is_a_uint8_tensor_with_label_and_index(catalog):
    dataset = FishDataset(catalog, np.array([7, 2]), A.Compose([A.Resize(24, 32), ToTensorV2()]), 0)
    assert len(dataset) == 2
    item = dataset[0, 0]
    assert item["image"].shape == (3, 24, 32) and item["image"].dtype == torch.uint8
    assert (item["label"], item["index"]) == (1, 7)
    assert (dataset[0, 1]["label"], dataset[0, 1]["index"]) == (0, 2)
    pixels = decode(catalog.root / catalog.paths[7])
    assert np.array_equal(item["image"].permute(1, 2, 0).numpy(), pixels)


def test_raise_names_the_file_and_a_remedy(make_folder, tmp_path):
    damaged = FolderSource(make_folder(tmp_path, 2, 2)).read()
    (tmp_path / "class b" / "001.png").write_bytes(b"")
    dataset = augmented(damaged)
    assert dataset[0, 0]["label"] == 0
    with pytest.raises(UnreadableImage) as error:
        dataset[0, 3]
    first, second = str(error.value).splitlines()
    assert first == f"{tmp_path / 'class b' / '001.png'}: an empty file"
    assert "data.on_error=skip" in second


def test_skip_labels_the_image_unreadable_and_keeps_the_batch_size(make_folder, tmp_path):
    damaged = FolderSource(make_folder(tmp_path, 2, 2)).read()
    (tmp_path / "class b" / "001.png").write_bytes(b"")
    (batch,) = DataLoader(augmented(damaged, on_error="skip"), batch_sampler=KeyedBatches(4, 4))
    assert batch["label"].tolist() == [0, 0, 1, UNREADABLE]
    assert batch["image"].shape == (4, 3, 24, 32) and batch["index"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("epoch", [0, 3])
def test_augmentation_does_not_depend_on_the_number_of_workers(catalog, epoch):
    dataset = augmented(catalog)
    alone = epoch_of(dataset, epoch, workers=0)
    assert torch.equal(alone, epoch_of(dataset, epoch, workers=2))
    assert torch.equal(alone, epoch_of(augmented(catalog), epoch, workers=0))


def test_augmentation_differs_between_epochs_seeds_and_images_in_every_worker(make_image, tmp_path):
    for number in range(8):  # eight equal images: only their augmentation differs
        make_image(tmp_path / "ab"[number % 2] / f"{number}.png", (90, 140, 60), seed=1)
    same = FolderSource(tmp_path).read()
    first, second = (epoch_of(augmented(same), epoch, workers=2) for epoch in (0, 1))
    other_seed = epoch_of(augmented(same, seed=43), 0, workers=2)
    assert len({image.numpy().tobytes() for part in (first, second, other_seed) for image in part}) == 24


def test_augmentation_is_keyed_by_the_index_in_the_catalog_and_not_in_the_split(catalog):
    pipeline = augmented(catalog).transform
    few = FishDataset(catalog, np.array([9]), pipeline, 42)
    assert torch.equal(few[2, 0]["image"], augmented(catalog)[2, 9]["image"])


def test_augmentation_does_not_depend_on_images_loaded_before(catalog):
    fresh, used = augmented(catalog), augmented(catalog)
    for index in (3, 1, 4):
        used[0, index]
    assert torch.equal(fresh[5, 7]["image"], used[5, 7]["image"])


def test_flips_of_equal_probability_are_independent():
    """With ``Compose.set_random_seed`` all transforms draw the same numbers: both flips or neither."""
    flips = A.Compose([A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5)])
    marked, keyed = np.zeros((2, 2, 3), np.uint8), KeyedRandomness()
    marked[0, 0] = 255
    counts = np.zeros(4)
    for index in range(2000):
        keyed.key(flips, keyed_seed(1, 2, index))
        counts[int(flips(image=marked)["image"][..., 0].argmax())] += 1
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)  # four standard deviations


def test_draws_from_numpy_are_keyed_too(catalog):
    noisy = A.Compose([A.Resize(24, 32), A.GaussNoise(p=1.0), ToTensorV2()])
    dataset = FishDataset(catalog, np.arange(len(catalog)), noisy, 42)
    first = dataset[0, 3]["image"]
    dataset[0, 4]
    assert torch.equal(dataset[0, 3]["image"], first)
    assert not torch.equal(dataset[1, 3]["image"], first)


def indices(batches):
    return [index for batch in batches for _, index in batch]


def test_order_of_an_epoch_is_a_permutation_drawn_from_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            batches = KeyedBatches(100, 32, seed, shuffle=True)
            batches.set_epoch(epoch)
            keys = list(batches)
            assert keys == list(batches) and len(batches) == 4
            assert [len(batch) for batch in keys] == [32, 32, 32, 4]
            assert {key[0] for batch in keys for key in batch} == {epoch}
            orders[seed, epoch] = tuple(indices(keys))
            assert sorted(orders[seed, epoch]) == list(range(100))
    assert len(set(orders.values())) == 6


def test_order_without_shuffling_is_that_of_the_catalog():
    assert list(KeyedBatches(4, 3)) == [[(0, 0), (0, 1), (0, 2)], [(0, 3)]]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("n", [12, 13, 14, 16, 17, 24, 25])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_shares_of_the_ranks_are_disjoint_and_contain_all_images(n, world, shuffle):
    shares = [KeyedBatches(n, 4, 7, shuffle, rank, world) for rank in range(world)]
    assert sorted(index for share in shares for index in indices(share)) == list(range(n))
    if shuffle:  # all ranks take as many steps, and none is empty
        assert len({len(share) for share in shares}) == 1
        assert all(batch for share in shares for batch in share)
    for share in shares:
        assert len(list(share)) == len(share)


@pytest.mark.parametrize("world", [2, 4])
def test_step_of_all_ranks_sees_the_images_of_a_single_process_with_that_batch_size(world):
    alone = list(KeyedBatches(24, 8, 7, shuffle=True))
    ranks = [list(KeyedBatches(24, 8 // world, 7, True, rank, world)) for rank in range(world)]
    for step, batch in enumerate(alone):
        assert sorted(batch) == sorted(key for rank in ranks for key in rank[step])


@pytest.mark.parametrize(
    ("n", "size", "world", "sizes"),
    [
        (119, 5, 1, [5] * 23 + [4]),  # 4 and more remain: a step of their own
        (122, 5, 1, [5] * 24 + [2]),
        (121, 5, 1, [5] * 23 + [6]),  # 1 remains: it joins the step before
        (6, 5, 1, [6]),
        (7, 1, 1, [1] * 7),  # what was asked for
        (1, 5, 1, [1]),
        (40, 5, 2, [10] * 4),
        (44, 5, 2, [10] * 4 + [4]),
        (43, 5, 2, [10] * 3 + [13]),  # 3 remain: one process would have 1 of them
        (41, 5, 2, [10] * 3 + [11]),
        (7, 1, 2, [2, 2, 3]),
    ],
)
def test_images_too_few_for_a_step_join_the_step_before(n, size, world, sizes):
    ranks = [KeyedBatches(n, size, 7, True, rank, world) for rank in range(world)]
    steps = [sorted(chain.from_iterable(step)) for step in zip(*ranks, strict=True)]
    assert [len(step) for step in steps] == sizes and {len(rank) for rank in ranks} == {len(sizes)}
    assert min(len(batch) for rank in ranks for batch in rank) >= min(2, size, n)
    alone = KeyedBatches(n, size * world, 7, True)  # sees the same images in the same steps
    assert steps[:-1] == [sorted(batch) for batch in alone][: len(steps) - 1]
    for rank, batches in enumerate(ranks):
        for start in range(len(sizes) + 1):
            assert list(KeyedBatches(n, size, 7, True, rank, world, 0, start)) == list(batches)[start:]


def test_fewer_images_than_processes_is_an_error():
    with pytest.raises(UserError, match=r"2 training images for 3 processes: set trainer.devices to 2 or fewer"):
        KeyedBatches(2, 4, shuffle=True, rank=0, world_size=3)


def test_batches_start_within_an_epoch():
    whole = list(KeyedBatches(10, 2, 3, shuffle=True))
    assert list(KeyedBatches(10, 2, 3, shuffle=True, start_batch=2)) == whole[2:]
    batches = KeyedBatches(10, 2, 3, shuffle=True, start_epoch=2, start_batch=2)
    assert [epoch for batch in batches for epoch, _ in batch] == [
        2
    ] * 6  # two batches of this epoch only were trained before
    batches.set_epoch(3)
    assert len(list(batches)) == 5
    share = list(KeyedBatches(10, 2, 3, shuffle=True, rank=1, world_size=2))
    assert list(KeyedBatches(10, 2, 3, shuffle=True, rank=1, world_size=2, start_batch=1)) == share[1:]

"""The data module: settings reach the loaders, an epoch has all images, a resumed run has the same images and split."""

import os
from functools import partial
from pathlib import Path

import hydra
import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from fish_lightning import hardware
from fish_lightning.cli import CONF
from fish_lightning.data.splits import file_split, photograph_split, random_split
from fish_lightning.errors import UserError


@pytest.fixture(scope="module")
def root(make_folder, tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos"), 2, 10)


def indices_of(loader):
    return torch.cat([batch["index"] for batch in loader]).tolist()


class Recorder(L.LightningModule):
    """Trains a single weight and records the indices of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["index"].tolist()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_loader_settings_reach_the_loaders(root):
    overrides = [
        "data=folder",
        f"data.root={root}",
        "data.batch_size=3",
        "data.num_workers=2",
        "data.pin_memory=true",
        "data.persistent_workers=false",
        "data.prefetch_factor=5",
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        data = hydra.utils.instantiate(compose("train", overrides).data)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert (loader.batch_sampler.batch_size, loader.num_workers, loader.prefetch_factor) == (3, 2, 5)
        assert loader.pin_memory is True and loader.persistent_workers is False


def test_settings_of_workers_are_ignored_without_workers(make_data, root):
    loader = make_data(root, num_workers=0, persistent_workers=True, prefetch_factor=4).train_dataloader()
    assert loader.num_workers == 0 and loader.prefetch_factor is None and loader.persistent_workers is False


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 0), (8, 1), (16, 2), (64, 8)])
def test_number_of_workers_depends_on_the_cpu_affinity(monkeypatch, cores, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert hardware.default_workers("cpu", "on") == workers
    with initialize_config_dir(CONF, version_base="1.3"):
        assert compose("train").data.num_workers == workers


def test_each_loader_yields_its_split_and_training_is_shuffled(make_data, root):
    data = make_data(root)
    assert data.catalog.counts() == {"train": 12, "val": 4, "test": 4}
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        assert indices_of(loader) == data.catalog.indices(split).tolist()
    trained = indices_of(data.train_dataloader())
    assert trained != sorted(trained) and sorted(trained) == data.catalog.indices("train").tolist()


@pytest.mark.parametrize(("subset", "count"), [("train", 12), ("val", 4), ("test", 4), ("all", 20)])
def test_tested_subset_can_be_chosen(make_data, root, subset, count):
    assert len(indices_of(make_data(root, test_subset=subset).test_dataloader())) == count


def test_only_training_images_are_augmented(make_data, root):
    data = make_data(root)
    assert data.train_dataloader().dataset.transform is data.train_transform
    assert data.val_dataloader().dataset.transform is data.eval_transform
    assert data.test_dataloader().dataset.transform is data.eval_transform


def test_table_replaces_folders_and_its_split_is_kept(make_folder, make_data, tmp_path, capsys):
    make_folder(tmp_path / "photos", 2, 10)
    rows = [f"class {c}/{i:03}.png,{c},{i // 2},{'test' if i < 4 else 'train'}" for c in "ab" for i in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(["path,label,photograph,split", *rows]))
    data = make_data(tmp_path / "photos", catalog=tmp_path / "table.csv", split=photograph_split)
    assert data.split_name == "folders" and data.catalog.classes == ("a", "b")
    assert (data.catalog.splits == "test").tolist() == ([True] * 4 + [False] * 6) * 2
    assert set(data.catalog.splits[4:10]) == {"train", "val"}
    # Both classes have photographs 0 to 4: equal names are one photograph, which then has two labels.
    assert "note: copies of one photograph under more than one label: class a/000.png, class a/001.png" in (
        capsys.readouterr().out
    )


def test_unreadable_image_in_a_worker_is_named(make_folder, make_data, tmp_path):
    make_folder(tmp_path, 2, 10)
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="an empty file"):
        indices_of(make_data(tmp_path, num_workers=1, persistent_workers=False).train_dataloader())


def test_state_is_plain_and_loads_with_weights_only(make_data, root, tmp_path):
    data = make_data(root, seed=5, split=partial(random_split, test=0.3))
    torch.save(data.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["split"] == "random" and state["seed"] == 5 and state["batch_size"] == 4
    assert state["catalog"]["paths"] == data.catalog.paths.tolist()
    data.load_state_dict(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "seed=42, not 7; another split ("),
        ("share", "another split (6 images differ; see split.csv in its folder)"),
        ("image", "other images (20 in 2 classes, now 22 in 2)"),
        ("label", "other images (20 in 2 classes, now 20 in 2)"),
    ],
)
def test_resume_with_other_images_or_another_split_is_an_error(make_folder, make_data, tmp_path, change, message):
    state = make_data(make_folder(tmp_path, 2, 10)).state_dict()
    settings = {"seed": {"seed": 7}, "share": {"split": partial(random_split, test=0.1)}}.get(change, {})
    if change == "image":
        make_folder(tmp_path, 2, 11)
    elif change == "label":
        (tmp_path / "class a" / "003.png").rename(tmp_path / "class b" / "103.png")
    with pytest.raises(UserError) as error:
        make_data(tmp_path, **settings).load_state_dict(state)
    assert str(error.value).startswith(f"ckpt: the run was started with {message}")


def test_replayed_split_can_be_resumed(make_data, root, tmp_path):
    begun = make_data(root)
    begun.catalog.write_csv(tmp_path / "split.csv")
    replayed = make_data(root, split=partial(file_split, path=str(tmp_path / "split.csv")))
    replayed.load_state_dict(begun.state_dict())
    assert np.array_equal(replayed.catalog.splits, begun.catalog.splits)
    assert (begun.split_name, replayed.split_name) == ("random", "file")


@pytest.mark.parametrize(
    ("settings", "message"), [({"seed": 1}, "seed=42, not 1$"), ({"batch_size": 3}, "batch_size=4, not 3$")]
)
def test_resume_with_another_seed_or_batch_size_is_an_error(make_data, root, tmp_path, settings, message):
    begun = make_data(root)
    begun.catalog.write_csv(tmp_path / "split.csv")
    other = make_data(root, split=partial(file_split, path=str(tmp_path / "split.csv")), **settings)
    with pytest.raises(UserError, match=message):
        other.load_state_dict(begun.state_dict())


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_run_stopped_within_an_epoch_resumes_at_the_next_batch(make_data, make_trainer, stop_at, root, tmp_path, stop):
    whole, begun, resumed = Recorder(), Recorder(), Recorder()
    settings, file = {"max_epochs": 3, "limit_val_batches": 0}, tmp_path / "last.ckpt"
    make_trainer(**settings).fit(whole, datamodule=make_data(root))
    with pytest.raises(stop_at.error):
        make_trainer(**settings, callbacks=[stop_at(stop, file)]).fit(begun, datamodule=make_data(root))
    make_trainer(**settings).fit(resumed, datamodule=make_data(root), ckpt_path=file, weights_only=True)
    assert len(whole.seen) == 9
    assert begun.seen == whole.seen[:stop]
    assert resumed.seen == whole.seen[stop:]


def test_split_of_folders_is_kept_unless_keep_split_is_false(make_data, make_folder, tmp_path):
    for part in ("train", "test"):
        make_folder(tmp_path / part, classes=2, per_class=5)
    assert make_data(tmp_path).split_name == "folders"
    assert make_data(tmp_path, keep_split=False).split_name == "random"


@pytest.mark.parametrize("name", sorted(file.stem for file in Path(CONF, "split").iterdir()))
def test_split_is_recorded_by_the_name_that_selects_it(make_data, make_folder, tmp_path, name):
    for part in ("train", "val", "test"):
        make_folder(tmp_path / "photos" / part, classes=2, per_class=4)
    (tmp_path / "split.csv").write_text(
        "\n".join(
            ["path,split", *(f"{part}/class {c}/000.png,{part}" for part in ("train", "val", "test") for c in "ab")]
        )
    )
    overrides = [f"split={name}", *([f"split.path={tmp_path / 'split.csv'}"] if name == "file" else [])]
    with initialize_config_dir(CONF, version_base="1.3"):
        split = hydra.utils.instantiate(compose("train", overrides).split)
    data = make_data(tmp_path / "photos", split=split, keep_split=False, photograph="[0-9]+")
    assert data.split_name == data.state_dict()["split"] == name

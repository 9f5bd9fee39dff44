"""Checkpoints: read as data only, and complete enough to restore classifier and evaluation transform."""

import pickle

import albumentations as A
import lightning as L
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from helpers import message_of

from fish_lightning.compat import quiet_lightning
from fish_lightning.errors import UserError
from fish_lightning.models.checkpoint import load_checkpoint, restore

ARGUMENTS = {
    "class_names": ["class a", "class b", "class c"],
    "name": "shufflenet_v2_x0_5",
    "eval_transform": A.to_dict(A.Compose([ToTensorV2()])),
}
NORMALIZATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def saved(make_folder, make_data, make_model, tmp_path_factory):
    """A checkpoint of one epoch: (data, model, file)."""
    folder = tmp_path_factory.mktemp("run")
    data = make_data(make_folder(folder / "photos", 3, 4))
    model = make_model(data, mean=NORMALIZATION[0], std=NORMALIZATION[1])
    quiet_lightning()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, use_distributed_sampler=False, default_root_dir=folder, **quiet
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "last.ckpt")
    return data, model, folder / "last.ckpt"


def test_checkpoint_contains_what_evaluation_requires_and_loads_with_weights_only(saved):
    data, _, file = saved
    checkpoint = torch.load(file, weights_only=True)
    arguments = checkpoint["hyper_parameters"]
    assert list(arguments["class_names"]) == list(data.catalog.classes) and len(data.catalog.classes) == 3
    assert arguments["name"] == "shufflenet_v2_x0_5"
    assert (arguments["mean"], arguments["std"]) == NORMALIZATION
    assert arguments["eval_transform"] == A.to_dict(data.eval_transform)
    assert not {"optimizer", "scheduler"} & set(arguments)
    assert checkpoint["precision"] == "32-true"
    assert checkpoint["FishDataModule"]["catalog"]["splits"] == data.catalog.splits.tolist()


def test_restored_model_predicts_as_the_trained_one(saved, batch):
    data, model, file = saved
    restored, transform = restore(load_checkpoint(file), file)
    assert not restored.training and restored.class_names == data.catalog.classes
    assert torch.equal(restored(batch["image"]), model.eval()(batch["image"]))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    assert torch.equal(transform(image=pixels)["image"], data.eval_transform(image=pixels)["image"])


def test_missing_checkpoint_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message_of(load_checkpoint, "best.ckpt")
    assert text.startswith(f"ckpt: no file best.ckpt (working directory: {tmp_path})") and "ckpt=" in text
    assert "no file" in message_of(load_checkpoint, tmp_path)  # a folder


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"hello", b"a\nb", b"\x80\x04", b"PK\x03\x04 half an archive"])
def test_other_file_is_an_error(tmp_path, content):
    (tmp_path / "best.ckpt").write_bytes(content)
    assert f"ckpt: {tmp_path / 'best.ckpt'} is not a checkpoint" in message_of(load_checkpoint, tmp_path / "best.ckpt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_checkpoint_is_an_error(saved, tmp_path, share):
    content = saved[2].read_bytes()
    (tmp_path / "last.ckpt").write_bytes(content[: int(len(content) * share)])
    assert "is not a checkpoint" in message_of(load_checkpoint, tmp_path / "last.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], torch.zeros(2), {"state_dict": {}, "precision": "32"}])
def test_checkpoint_of_another_project_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "best.ckpt")
    assert "is not a checkpoint of fish_lightning" in message_of(load_checkpoint, tmp_path / "best.ckpt")


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("hyper_parameters", {}),
        ("hyper_parameters", [1]),
        ("hyper_parameters", {"class_names": ["a", "b"], "abc": 1}),
        ("hyper_parameters", {**ARGUMENTS, "abc": 1}),
        ("state_dict", {}),
        ("state_dict", {"network.conv1.0.weight": torch.zeros(2)}),
        (
            "hyper_parameters",
            {"class_names": ["a", "b", "c"], "name": "shufflenet_v2_x0_5", "eval_transform": {"a": 1}},
        ),
    ],
)
def test_malformed_checkpoint_is_an_error(saved, tmp_path, key, content):
    file = tmp_path / "best.ckpt"
    torch.save(torch.load(saved[2], weights_only=True) | {key: content}, file)
    with pytest.raises(UserError) as raised:
        restore(load_checkpoint(file), file)
    assert str(raised.value).startswith(f"ckpt: {file} is corrupt or incomplete (")
    assert len(str(raised.value).splitlines()) == 1


def test_checkpoint_with_a_transform_that_reads_files_is_refused(saved):
    file = saved[2]
    checkpoint = load_checkpoint(file)
    pipeline = A.to_dict(A.Compose([A.Resize(8, 8), A.Sequential([A.TextImage("font.ttf")])]))
    with pytest.raises(UserError, match=r"^transforms\.eval: TextImage cannot be stored in a checkpoint\n"):
        restore(checkpoint | {"hyper_parameters": checkpoint["hyper_parameters"] | {"eval_transform": pipeline}}, file)


def test_code_in_a_checkpoint_is_refused_and_not_executed(tmp_path, malice):
    torch.save({"state_dict": {}, "hyper_parameters": malice}, tmp_path / "best.ckpt")
    text = message_of(load_checkpoint, tmp_path / "best.ckpt")
    assert "is not a checkpoint (it would run " in text and "open; only data are loaded)" in text
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(malice, protocol=2))
    assert "is not a checkpoint" in message_of(load_checkpoint, tmp_path / "bare.ckpt")
    assert not malice.path.exists()

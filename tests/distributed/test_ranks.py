"""What the processes of a run share: one config, and the results of one process with as large a batch."""

import os
from types import SimpleNamespace

import pytest
import torch
from helpers import HELPERS, SHORT, ranks_of, rows_of, summary_of
from omegaconf import OmegaConf

from fish_lightning.distributed.cluster import PARENT
from fish_lightning.distributed.ranks import announce_parent, gathered, starts_processes
from fish_lightning.distributed.same_config import SameConfig
from fish_lightning.errors import UserError


def require_success(ranks):
    assert [rank.returncode for rank in ranks] == [0, 0], [rank.stderr for rank in ranks]


def test_without_a_process_group_there_is_one_value():
    assert gathered("a") == ["a"]


@pytest.mark.parametrize(
    ("strategy", "external", "starts"), [("auto", False, False), ("ddp", False, True), ("ddp", True, False)]
)
def test_lightning_starts_processes_where_neither_torchrun_nor_slurm_does(
    make_trainer, monkeypatch, strategy, external, starts
):
    if external:
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": "0", "RANK": "0", "GROUP_RANK": "0"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(PARENT, "")  # restored after the test
    trainer = make_trainer(strategy=strategy, devices=2 if strategy == "ddp" else 1)
    assert starts_processes(trainer) is starts
    announce_parent(trainer)
    assert os.environ.get(PARENT) == (str(os.getpid()) if starts else "")


def test_fewer_images_in_a_split_than_processes_are_an_error(monkeypatch):
    monkeypatch.setattr("fish_lightning.distributed.ranks.gathered", lambda value: [value] * 4)
    counts = {"train": 9, "val": 3, "test": 0}
    trainer = SimpleNamespace(world_size=4, datamodule=SimpleNamespace(catalog=SimpleNamespace(counts=lambda: counts)))
    with pytest.raises(UserError, match="3 val images for 4 processes: each needs at least one\nuse fewer processes"):
        SameConfig(OmegaConf.create({"seed": 1})).setup(trainer, None, "fit")


GROUPS = {
    "plain": [],
    "mix": ["mix=both", "average=ema", "balance=class", "transforms.backgrounds=0.5"],
    "freeze": [
        *("freeze=head_first", "callbacks.freeze.every=1", "trainer.max_epochs=3", "balance=photograph"),
        *("data.photograph='[0-9]'", "loss=focal"),
    ],
    "backbone": [
        *("freeze=backbone", "average=swa", "callbacks.average.start=0", "balance=loss", "tta=flips"),
        *("optimizer.layer_decay=0.9", "optimizer.decay_norms=false", "loss=cosine"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_two_processes_of_half_a_batch_train_as_one_of_a_whole(tmp_path, train_tiny, train_ranks, make_folder, groups):
    data = make_folder(tmp_path / "fish", classes=3, per_class=13)  # 29 to train on: the last step has 3 and 2
    make_folder(data, classes=[f"class {letter} GT" for letter in "abc"], per_class=13)  # masks of noise
    spies = ("+callbacks.spy._target_=rank_callbacks.Spy", "+callbacks.frozen._target_=rank_callbacks.FrozenBatchNorm")
    same = (*spies, "validate_first=false", "trainer.max_epochs=1", *groups)
    one, two = tmp_path / "one", tmp_path / "two"
    alone = train_tiny(tmp_path, *same, f"hydra.run.dir={one}", "data.batch_size=8", data=data, env=HELPERS)
    assert alone.returncode == 0, alone.stderr
    both = train_ranks(tmp_path, *same, f"hydra.run.dir={two}", "data.batch_size=4", data=data, env=HELPERS)
    require_success(both)
    whole, halves = ranks_of(one, 1)[0]["losses"], ranks_of(two)[0]["losses"]
    assert halves == pytest.approx(whole, rel=1e-5) and len(whole) == 4 * summary_of(one)["epochs"]
    first, second = (summary_of(folder)["test"] for folder in (one, two))
    assert first["n"] == second["n"] == 6 and first["confusion_matrix"] == second["confusion_matrix"]
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)
    assert summary_of(two)["val"] == pytest.approx(summary_of(one)["val"], rel=1e-5)
    paths = [[row["path"] for row in rows_of(folder / "test_predictions.csv")] for folder in (one, two)]
    assert paths[0] == paths[1] and len(set(paths[1])) == 6


@pytest.mark.slow
def test_processes_with_different_settings_stop_before_the_first_step(tmp_path, train_ranks, make_folder):
    tampered = "optimizer.weight_decay='${oc.decode:${oc.env:LOCAL_RANK,0}}'"
    data = make_folder(tmp_path / "fish", classes=["a", "A", "b"], per_class=12)
    ranks = train_ranks(tmp_path, tampered, "hydra.run.dir=run", data=data)
    assert ["note: class names that differ only in case" in done.stdout for done in ranks] == [True, False]
    for done in ranks:
        assert done.returncode == 1
        assert "the processes of this run have different configs: optimizer.weight_decay (0 / 1)" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_process_that_can_read_no_image_of_a_batch_does_not_block_the_other(tmp_path, train_ranks, make_folder):
    for split in ("train", "val", "test"):
        make_folder(tmp_path / "fish" / split, classes=2, per_class=4)
    for file in sorted((tmp_path / "fish" / "train").rglob("*.png"))[::2]:
        file.write_bytes(b"no image")
    skip = ("data.on_error=skip", "data.batch_size=1", "model.name=squeezenet1_1", "hydra.run.dir=run")
    size = ("transforms.height=64", "transforms.width=64", "trainer.max_epochs=1", *SHORT)
    require_success(train_ranks(tmp_path, *skip, *size, data=tmp_path / "fish"))
    assert len(summary_of(tmp_path / "run")["unreadable_images"]) == 4


@pytest.mark.slow
def test_processes_skip_a_batch_together(tmp_path, train_ranks, faults):
    poison = "+callbacks.poison={_target_:faults.Poison,steps:[3],rank:1}"
    size = ("transforms.height=64", "transforms.width=64", "hydra.run.dir=run", *SHORT)
    require_success(train_ranks(tmp_path, *size, poison, "on_nan=skip", env=faults))
    assert summary_of(tmp_path / "run")["skipped_batches"] == 1
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(part.isfinite().all() for part in saved.values())


@pytest.mark.slow
def test_a_pruned_trial_stops_on_all_processes(tmp_path, train_ranks):
    optuna = pytest.importorskip("optuna", reason="the optuna extra is not installed")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="fish", direction="maximize")
    study.ask()
    pruning = (
        "+callbacks.pruning={_target_:fish_lightning.sweeps.pruning.ReportToStudy,study_name:fish,trial:0,"
        f"monitor:val/accuracy,storage:'{storage}',pruner:{{_target_:optuna.pruners.ThresholdPruner,lower:2}}}}"
    )
    require_success(train_ranks(tmp_path, pruning, "hydra.run.dir=run", "data.batch_size=5", *SHORT))
    summary = summary_of(tmp_path / "run")
    assert summary["pruned"] is True and summary["epochs"] == 1
    assert study.get_trials()[0].intermediate_values.keys() == {1}  # reported once

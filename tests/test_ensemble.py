"""An ensemble: the mean of its members' probabilities, scored on photographs that none of them was trained on."""

import copy
import json
import re
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from helpers import TINY, rows_of, summary_of

from fish_lightning.errors import UserError
from fish_lightning.evaluation.heatmaps import heat_maps
from fish_lightning.evaluation.members import find_members
from fish_lightning.evaluation.outputs import Outputs
from fish_lightning.models.checkpoint import load_checkpoint, restore
from fish_lightning.models.ensemble import joined_checkpoint
from fish_lightning.models.trained import open_model
from fish_lightning.report.explanations import _heat as heat_of_model
from fish_lightning.training.ensemble import _forward_ratio

pytest.importorskip("timm")

NETWORKS = ("shufflenet_v2_x0_5", "timm/test_resnet")
SPLITS = ("train", "train", "train", "val", "test", "test")


@pytest.fixture(scope="module")
def world(tmp_path_factory, run, tiny_data):
    """A sweep of two networks on one split, and its ensemble: ``.cwd``, ``.sweep``, ``.folder``, ``.stdout``."""
    cwd = tmp_path_factory.mktemp("ensemble")
    rows = ["path,label,photograph,split"]
    for file in sorted(tiny_data.glob("*/*.png")):  # two images a photograph
        photograph = int(file.stem) // 2
        name = file.parent.name
        rows.append(f"{name}/{file.name},{name},{name}-{photograph},{SPLITS[photograph]}")
    (cwd / "table.csv").write_text("\n".join(rows))
    words = [word for word in TINY if not word.startswith("model.name")]
    where = (f"data.root={tiny_data}", "data.catalog=table.csv", "hydra.sweep.dir=sweep", "trainer.max_epochs=2")
    done = run("train", "-m", *words, *where, "validate_first=false", f"model.name={','.join(NETWORKS)}", cwd=cwd)
    assert done.returncode == 0, done.stderr
    made = run("ensemble", "runs=sweep", "hydra.run.dir=joined", "report=false", "trainer=cpu", cwd=cwd)
    assert made.returncode == 0, made.stderr
    made.cwd, made.sweep, made.folder = cwd, cwd / "sweep", cwd / "joined"
    return made


@pytest.fixture(scope="module")
def members(world):
    return {f"sweep/{i}": load_checkpoint(world.sweep / str(i)) for i in (0, 1)}


def outputs_of(folder):
    return Outputs.load(folder / "logits.npz")


def test_its_probabilities_are_the_mean_of_its_members(world):
    joined = outputs_of(world.folder)
    single = [outputs_of(world.sweep / str(i)) for i in (0, 1)]
    assert sorted(joined.paths) == sorted(single[0].paths) == sorted(single[1].paths)
    at = [[member.paths.tolist().index(path) for path in joined.paths] for member in single]
    mean = np.mean([member.take(np.array(i)).probabilities for member, i in zip(single, at, strict=True)], axis=0)
    assert np.allclose(joined.probabilities, mean, atol=1e-5)
    assert np.abs(single[0].probabilities - single[1].probabilities[np.argsort(at[1])][at[0]]).max() > 0.01


def test_its_features_are_those_of_its_members_one_after_the_other(world):
    joined = outputs_of(world.folder)
    assert joined.features.shape[1] == sum(outputs_of(world.sweep / str(i)).features.shape[1] for i in (0, 1))


def test_it_is_scored_on_test_photographs_of_all_and_calibrated_on_validation_photographs(world):
    summary = summary_of(world.folder)
    assert (summary["test"]["n"], summary["test"]["photographs"]) == (12, 6)
    assert summary["images"] == {"train": 18, "val": 6, "test": 12} and summary["val"] == {}
    recorded = {row["path"]: row["split"] for row in rows_of(world.cwd / "table.csv")}
    assert {row["path"]: row["split"] for row in rows_of(world.folder / "split.csv")} == recorded
    assert "calibration  from 6 images that no member was trained on" in world.stdout
    stored = json.loads((world.folder / "calibration.json").read_text())
    assert stored["temperature"] > 0
    assert stored["selective"]["candidates"] == 2 * 2, "the validation photographs have chosen an epoch of each member"


def test_it_says_what_it_gains_and_costs(world):
    summary, joined = summary_of(world.folder), outputs_of(world.folder).subset("test")
    single = [outputs_of(world.sweep / str(i)).subset("test") for i in (0, 1)]
    accuracies = [float(member.correct.mean()) for member in single]
    assert [member["accuracy"] for member in summary["members"]] == pytest.approx(accuracies)
    assert [member["model"] for member in summary["members"]] == list(NETWORKS)
    mean = summary["gain"]["mean_member"]
    assert mean["difference"] == pytest.approx(joined.correct.mean() - np.mean(accuracies))
    assert mean["difference_ci95_photographs"][0] <= mean["difference"] <= mean["difference_ci95_photographs"][1]
    validations = [summary_of(world.sweep / str(i))["val"] for i in (0, 1)]
    best = max((0, 1), key=lambda i: (validations[i]["accuracy"], -validations[i]["loss"]))
    assert summary["gain"]["best_by_validation"]["run"] == f"sweep/{best}"
    assert summary["gain"]["best_by_validation"]["accuracy"]["member"] == pytest.approx(accuracies[best])
    assert re.search(r"gain +[-+][\d.]+ points over the average member \(", world.stdout)
    sizes = [sum(t.nbytes for t in load_checkpoint(world.sweep / str(i))["state_dict"].values()) for i in (0, 1)]
    assert summary["cost"]["mb"] == pytest.approx(sum(sizes) / 1e6)
    assert summary["cost"]["member_mb"] == pytest.approx(sum(sizes) / 2e6)
    assert f"{summary['cost']['forward']:.1f} times the forward pass of a member" in world.stdout


def test_the_cost_of_a_forward_pass_is_that_of_all_members(world, monkeypatch):
    """On a clock that the members themselves advance: by 1 and by 3 seconds."""
    model, _ = restore(load_checkpoint(world.folder), "joined")
    now = 0.0

    def advance(seconds):
        nonlocal now
        now += seconds

    for member, seconds in zip(model.network, (1.0, 3.0), strict=True):
        member.register_forward_pre_hook(lambda *_, seconds=seconds: advance(seconds))
    monkeypatch.setattr("fish_lightning.training.ensemble.time.perf_counter", lambda: now)
    model.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    batch = {"image": torch.zeros((2, 3, 32, 32), dtype=torch.uint8)}
    assert _forward_ratio(model, SimpleNamespace(test_dataloader=lambda: [batch])) == 4 / 2


def test_compare_finds_the_gain_over_the_best_member_in_its_folder(world, run):
    best = summary_of(world.folder)["gain"]["best_by_validation"]
    done = run("compare", f"a={best['run']}", "b=joined", "hydra.run.dir=compared", cwd=world.cwd)
    assert done.returncode == 0, done.stderr
    found = json.loads((world.cwd / "compared" / "compare.json").read_text())
    for key in ("difference", "difference_ci95_photographs", "verdict"):
        assert found[key] == best[key]
    assert found["leaked_test_images"] == {"a": 0, "b": 0}


def test_evaluate_reproduces_its_score_and_its_calibration(world, run):
    done = run("evaluate", "ckpt=joined", "hydra.run.dir=again", "trainer=cpu", "report=false", cwd=world.cwd)
    assert done.returncode == 0, done.stderr
    again, before = summary_of(world.cwd / "again")["test"], summary_of(world.folder)["test"]
    for key in ("accuracy", "loss", "macro_f1", "accuracy_ci95_photographs", "n"):
        assert again[key] == before[key]
    assert again["calibration"]["temperature"] == before["calibration"]["temperature"]


def test_its_calibration_belongs_to_its_weights(world):
    trained = open_model(world.folder)  # as predict does
    assert trained.note == "" and trained.calibration["classes"] == list(trained.module.class_names)
    assert "fitted with tta=null" in open_model(world.folder, "flips").note


def test_with_views_it_is_calibrated_for_them_and_compared_with_members_that_have_them(world, run):
    done = run(
        "ensemble", "runs=sweep", "tta=flips", "hydra.run.dir=flipped", "report=false", "trainer=cpu", cwd=world.cwd
    )
    assert done.returncode == 0, done.stderr
    flipped = open_model(world.cwd / "flipped", "flips")
    assert "predict ckpt=flipped tta=flips input=FOLDER" in done.stdout
    assert flipped.note == "" and "fitted with tta=flips" in open_model(world.cwd / "flipped").note
    assert not np.allclose(
        outputs_of(world.cwd / "flipped").probabilities, outputs_of(world.folder).probabilities, atol=1e-9
    )
    evaluated = run(
        *("evaluate", "ckpt=sweep/0", "tta=flips", "hydra.run.dir=single", "trainer=cpu", "report=false"), cwd=world.cwd
    )
    assert evaluated.returncode == 0, evaluated.stderr
    member = summary_of(world.cwd / "flipped")["members"][0]
    assert member["accuracy"] == summary_of(world.cwd / "single")["test"]["accuracy"]


def test_its_checkpoint_is_data_only_and_has_nothing_but_its_members_weights(world, members):
    content = torch.load(world.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert len(content["state_dict"]) == sum(len(member["state_dict"]) for member in members.values())
    assert [of["name"] for of in content["hyper_parameters"]["members"]] == list(NETWORKS)
    assert content["hyper_parameters"]["members"][1]["mean"] == [0.5, 0.5, 0.5]  # each its own normalization


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda of: of.update(members=of["members"][:1]), "hyper_parameters.members: expected at least two"),
        (lambda of: of["members"][0].pop("mean"), "hyper_parameters.members: expected at least two"),
        (lambda of: of["members"][0].update(name="timm/hf-hub:a/b"), "hyper_parameters.name: model.name: timm has no"),
        (lambda of: of["members"][0].update(name="resnet18"), "state_dict.network.members.0.network."),
        (lambda of: of.pop("members"), "hyper_parameters.name: model.name: torchvision has no"),
    ],
)
def test_a_checkpoint_with_other_members_is_refused(world, tmp_path, change, words):
    content = torch.load(world.folder / "checkpoints" / "best.ckpt", weights_only=True)
    change(content["hyper_parameters"])
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "best.ckpt")
    assert words in str(error.value) and "corrupt or incomplete" in str(error.value)


def test_test_time_augmentation_averages_the_views_of_all_members(world, batch_of_images):
    model = open_model(world.folder, "flips").module
    probabilities = model.logits_and_features(batch_of_images)[0].softmax(1)
    views = [batch_of_images.flip(dims) for dims in ((), (3,), (2,), (2, 3))]
    with torch.no_grad():
        single = [open_model(world.sweep / str(i)).module(view).softmax(1) for i in (0, 1) for view in views]
    assert torch.allclose(probabilities, torch.stack(single).mean(0), atol=1e-5)


@pytest.fixture
def batch_of_images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def test_its_heat_maps_are_the_mean_of_its_members(world, batch_of_images):
    model = open_model(world.folder).module
    heat = heat_of_model(model, batch_of_images, [0, 1])
    single = [open_model(world.sweep / str(i)).module for i in (0, 1)]
    maps = [heat_maps(of.network, of.normalize(batch_of_images), torch.tensor([0, 1])) for of in single]
    assert maps[0].shape == maps[1].shape == heat.shape
    mean = (maps[0] + maps[1]) / 2
    assert np.allclose(heat, mean / mean.max((1, 2), keepdims=True), atol=1e-4)


def with_splits(checkpoint, splits):
    """The checkpoint of a run with other splits of its photographs."""
    changed = copy.deepcopy(checkpoint)
    catalog = changed["FishDataModule"]["catalog"]
    catalog["splits"] = [splits[int(name.rpartition("-")[2])] for name in catalog["photographs"]]
    return changed


def saved(cwd, checkpoints):
    for i, checkpoint in enumerate(checkpoints):
        (cwd / str(i) / "checkpoints").mkdir(parents=True)
        torch.save(checkpoint, cwd / str(i) / "checkpoints" / "best.ckpt")
    return cwd


def test_of_folds_there_is_no_photograph_to_score_and_it_says_so(world, members, run, tmp_path):
    first, second = members.values()
    folds = [with_splits(first, SPLITS), with_splits(second, ("test", "test", "val", "train", "train", "train"))]
    saved(tmp_path / "folds", folds)
    done = run("ensemble", "runs=folds", "hydra.run.dir=joined", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not scored   each of the 36 images, or a copy of it, was in some member's training set" in done.stdout
    assert "calibration  none" in done.stdout and "evaluate ckpt=joined data=folder data.root=DIR" in done.stdout
    summary = summary_of(tmp_path / "joined")
    assert (summary["test"], summary["val"], summary["gain"]) == ({}, {}, None)
    assert not (tmp_path / "joined" / "calibration.json").exists()
    assert len(open_model(tmp_path / "joined").module.network.members) == 2


def test_photographs_that_are_test_images_of_some_only_are_scored_as_validation(world, members, run, tmp_path):
    first, second = members.values()
    seeds = [with_splits(first, SPLITS), with_splits(second, ("train", "train", "train", "test", "val", "train"))]
    saved(tmp_path / "seeds", seeds)
    done = run("ensemble", "runs=[seeds/0,seeds/1]", "hydra.run.dir=joined", "report=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "; images no member was trained on, though some selected their epoch on them" in done.stdout
    summary = summary_of(tmp_path / "joined")
    assert (summary["test"], summary["val"]["n"]) == ({}, 12)
    assert summary["gain"]["best_by_validation"] is None  # their summaries are missing
    assert json.loads((tmp_path / "joined" / "calibration.json").read_text())["temperature"] > 0


def test_members_that_do_not_belong_together_are_named(members):
    first, second = members.values()
    other = copy.deepcopy(second)
    other["hyper_parameters"]["class_names"] = ["class a", "class b", "eel"]
    message = error_of({"A": first, "B": other})
    assert message == "runs: A and B have different classes\nonly in A: class c\nonly in B: eel"
    other = copy.deepcopy(second)
    other["hyper_parameters"]["eval_transform"]["transform"]["transforms"][0]["height"] = 48
    assert "A and B have different evaluation transforms: Resize 32x32, ToTensorV2; Resize 48x32" in error_of(
        {"A": first, "B": other}
    )
    other = copy.deepcopy(second)
    other["FishDataModule"]["catalog"]["root"] = "/elsewhere"
    assert "B in /elsewhere" in error_of({"A": first, "B": other})
    assert error_of({"A": first}).startswith("runs: an ensemble requires two runs or more, not A alone\n")
    joined = joined_checkpoint(members)
    assert error_of({"A": first, "B": joined}) == "runs: B is an ensemble itself; pass its members"


def error_of(checkpoints):
    with pytest.raises(UserError) as error:
        joined_checkpoint(checkpoints)
    assert 1 <= len(str(error.value).splitlines()) <= 5
    return str(error.value)


def test_a_joined_checkpoint_restores_in_memory_as_from_its_file(world, members, batch_of_images):
    joined, _ = restore(joined_checkpoint(members), "memory")
    stored = open_model(world.folder).module
    with torch.no_grad():
        assert torch.equal(joined(batch_of_images), stored(batch_of_images))


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        (["sweep/0", "sweep/0/checkpoints/best.ckpt"], "a run is named more than once"),
        (["sweep/0", "nowhere"], "runs: no file nowhere/checkpoints/best.ckpt (working directory: "),
        ("nowhere", "runs: nowhere is not a folder"),
        (".", "runs: . has neither checkpoints/best.ckpt nor jobs with one"),
    ],
)
def test_runs_that_are_none_are_errors(world, monkeypatch, runs, words):
    monkeypatch.chdir(world.sweep / "0" / "plots" if runs == "." else world.cwd)
    with pytest.raises(UserError) as error:
        find_members(runs)
    assert words in str(error.value) and 1 <= len(str(error.value).splitlines()) <= 5


def test_failed_jobs_of_a_sweep_are_no_members(world, monkeypatch, tmp_path):
    for name in ("10", "2", "3"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "checkpoints" / "best.ckpt").touch()
    (tmp_path / "3" / "error.txt").touch()
    monkeypatch.chdir(tmp_path.parent)
    assert list(find_members(str(tmp_path))) == [f"{tmp_path.name}/2", f"{tmp_path.name}/10"]

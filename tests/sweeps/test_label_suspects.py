"""Label suspects of a sweep: pooled over its folds, so that no model judges an image it was trained on."""

from types import SimpleNamespace

import numpy as np
import pytest
from compared_runs import save_run
from helpers import COLORS, TINY, draw, rows_of
from omegaconf import OmegaConf

from fish_lightning.sweeps.label_suspects import COLUMNS
from fish_lightning.sweeps.table import SweepTable


@pytest.fixture
def folds(tmp_path):
    """``folds(wrong, overrides=())``: three folds of 60 images, 20 photographs each, ``wrong`` ones mislabeled."""

    def make(wrong, overrides=(), first=0, accuracy=0.9, photographs=True):
        for fold in range(3):
            labels = np.arange(60) // 3 % 3
            names = [f"{fold}-{i // 3}" for i in range(60)] if photographs else ""
            paths = [f"{fold}/{i:02}.png" for i in range(60)]
            folder = tmp_path / str(first + fold)
            summary = {"test": {"accuracy": accuracy, "n": 60}, "val": {}}
            save_run(folder, paths, labels, wrong.get(fold, ()), names, **summary)
            (folder / ".hydra").mkdir()
            OmegaConf.save(OmegaConf.create([*overrides, f"split.fold={fold}"]), folder / ".hydra" / "overrides.yaml")

    return make


@pytest.fixture
def end(tmp_path, capsys):
    """``end()``: what a sweep in ``tmp_path`` prints at its end."""

    def end_sweep():
        cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}, "optimized_metric": "val/accuracy"})
        SweepTable().on_multirun_end(cfg)
        return capsys.readouterr().out

    return end_sweep


def test_folds_are_pooled_and_their_suspects_are_listed_by_photograph(folds, end, tmp_path):
    folds({0: (6, 7, 8), 2: (30, 31, 32)})  # photograph 2 of fold 0, photograph 10 of fold 2
    printed = end()
    assert "label suspects  2 of 60 photographs (6 images): label_suspects.csv, the most certain first" in printed
    assert "labeled trout (" in printed and "perhaps bass (" in printed
    rows = rows_of(tmp_path / "label_suspects.csv")
    assert tuple(rows[0]) == COLUMNS
    assert {row["photograph"]: (row["label"], row["suggested"]) for row in rows} == {
        "0-2": ("trout", "bass"),
        "2-10": ("carp", "trout"),
    }
    assert sorted(row["path"] for row in rows) == [
        "0/06.png",
        "0/07.png",
        "0/08.png",
        *(f"2/{i}.png" for i in (30, 31, 32)),
    ]
    assert all(float(row["suggested_probability"]) > float(row["given_probability"]) for row in rows)


def test_without_suspects_there_is_a_table_without_rows(folds, end, tmp_path):
    folds({}, photographs=False)
    assert "label suspects  none among 180 images" in end()
    assert (tmp_path / "label_suspects.csv").read_text().splitlines() == [",".join(COLUMNS)]


def test_of_several_settings_the_best_one_is_searched(folds, end, tmp_path):
    folds({0: (6, 7, 8)}, ["optimizer=adam"], accuracy=0.8)
    folds({1: (9, 10, 11)}, ["optimizer=sgd"], first=3, accuracy=0.9)
    assert "label suspects  1 of 60 photographs" in end()
    assert {row["photograph"] for row in rows_of(tmp_path / "label_suspects.csv")} == {"1-3"}


def test_what_cannot_be_searched_is_told_and_does_not_end_the_sweep(folds, end, tmp_path):
    folds({})
    (tmp_path / "1" / "logits.npz").write_bytes(b"cut off")
    assert "label suspects  not computed: " in end()
    assert "sweep folder" in end() and not (tmp_path / "label_suspects.csv").exists()


def test_a_sweep_over_anything_else_has_no_suspects(tmp_path, end):
    for job in range(2):
        save_run(tmp_path / str(job), ["a.png"], [0], test={"accuracy": 1.0, "n": 1}, val={})
        (tmp_path / str(job) / ".hydra").mkdir()
        OmegaConf.save(OmegaConf.create([f"seed={job}"]), tmp_path / str(job) / ".hydra" / "overrides.yaml")
    assert "label suspects" not in end() and not (tmp_path / "label_suspects.csv").exists()


@pytest.fixture(scope="module")
def mislabeled(tmp_path_factory):
    """Four classes by color, 60 photographs of each, every fourth with a copy; 12 of the 240 are labeled wrongly."""
    root = tmp_path_factory.mktemp("mislabeled") / "images"
    rng, names = np.random.default_rng(0), [f"class {letter}" for letter in "abcd"]
    wrong = {divmod(int(n), 60) for n in rng.choice(240, 12, replace=False)}
    planted = set()
    for label in range(4):
        for number in range(60):
            given = (label + 1 + number % 3) % 4 if (label, number) in wrong else label
            for copy in "a" if number % 4 else "ab":
                draw(root / names[given] / f"{label}{number:02}{copy}.png", COLORS[label], 100 * label + number)
            if given != label:
                planted.add(f"{names[given]}/{label}{number:02}")
    return SimpleNamespace(root=root, planted=planted, names=names)


@pytest.mark.slow
def test_planted_label_errors_are_found_by_training_folds(tmp_path, run, mislabeled):
    few = ("optimizer.lr=0.005", "trainer.max_epochs=16", "data.batch_size=16")
    few += ("validate_first=false", "hydra.sweep.dir=folds", "callbacks.last=null")
    photograph = "data.photograph='([0-9]+)[ab]'"
    done = run(
        "train",
        *TINY,
        f"data.root={mislabeled.root}",
        photograph,
        "sweep=folds",
        "split=kfold",
        "split.folds=3",
        *few,
        cwd=tmp_path,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "folds" / "label_suspects.csv")
    found = {row["photograph"] for row in rows}
    hits = found & mislabeled.planted
    assert len(mislabeled.planted) == 12
    assert len(hits) >= 0.9 * len(found) and len(hits) >= 0.8 * len(mislabeled.planted)
    assert f"label suspects  {len(found)} of 240 photographs ({len(rows)} images)" in done.stdout
    for row in rows:  # the true class is suggested
        true = mislabeled.names[int(row["photograph"].rpartition("/")[2][0])]
        assert row["photograph"] not in hits or row["suggested"] == true

"""``python -m fish_lightning.compare`` as a user runs it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from compared_runs import CLASSES, save_run
from omegaconf import OmegaConf

from fish_lightning.compare import compare
from fish_lightning.errors import UserError
from fish_lightning.evaluation import comparison

PATHS = [f"{CLASSES[i % 3]}/{i:03}.png" for i in range(60)]
LABELS = [i % 3 for i in range(60)]
PHOTOGRAPHS = [f"{i % 3}-{i // 12}" for i in range(60)]  # 15 photographs, 4 copies each
SPLIT = [
    *((path, CLASSES[i % 3], PHOTOGRAPHS[i], "test") for i, path in enumerate(PATHS)),
    *((f"carp/train-{i}.png", "carp", f"t{i}", "train") for i in range(3)),
]


@pytest.fixture
def program(tmp_path, run):
    """``program()``: what comparing the folders a and b printed, ``compare.json``, and the folder."""

    def start():
        done = run("compare", "a=a", "b=b", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "logs" / "compare" / "runs").iterdir()
        return done.stdout, json.loads((folder / "compare.json").read_text()), folder

    return start


@pytest.fixture
def compared(tmp_path, monkeypatch, capsys):
    """``compared(margin=0.01)``: likewise without a process of its own: what it printed and ``compare.json``."""

    def start(a="a", b="b", margin=0.01, root=None):
        monkeypatch.chdir(tmp_path)
        cfg = {"a": a, "b": b, "margin": margin, "data": {"root": root}, "paths": {"output": "out"}}
        compare(OmegaConf.create(cfg))
        return capsys.readouterr().out, json.loads((tmp_path / "out" / "compare.json").read_text())

    return start


def test_two_runs_are_compared_by_image_and_by_photograph(tmp_path, program):
    save_run(tmp_path / "a", PATHS, LABELS, range(24), PHOTOGRAPHS, split=SPLIT)  # the first 6 photographs
    save_run(tmp_path / "b", PATHS, LABELS, [0, 3, 6, 59], PHOTOGRAPHS, split=SPLIT)
    printed, found, folder = program()
    contract = {"n", "photographs", "accuracy", "difference", "difference_ci95_photographs"}
    assert contract | {"only_a_right", "only_b_right", "verdict"} <= set(found)
    assert (found["n"], found["photographs"]) == (60, 15)
    assert found["accuracy"] == {"a": 0.6, "b": pytest.approx(56 / 60)}
    assert found["difference"] == pytest.approx(20 / 60)
    assert (found["only_a_right"], found["only_b_right"]) == (1, 21)
    assert (found["photographs_better_in_a"], found["photographs_better_in_b"]) == (1, 6)
    right = np.arange(60) >= 24, ~np.isin(np.arange(60), [0, 3, 6, 59])
    expected = comparison.compare(*right, np.array(PHOTOGRAPHS))
    assert found["difference_ci95_photographs"] == expected["difference_ci95_photographs"]
    votes = {name: vote["accuracy"] for name, vote in found["photograph_vote"].items()}
    assert votes == {"a": 0.6, "b": pytest.approx(14 / 15)}  # 3 of 4 copies of 0-0 are wrong
    assert found["mcnemar_p"] is None
    bass = {"n": 20, "a": pytest.approx(0.6), "b": pytest.approx(0.85), "only_a_right": 0, "only_b_right": 5}
    assert found["per_class"]["bass"] == bass
    assert found["verdict"] == "better"
    assert (found["warnings"], found["without_leaked"]) == ([], None)
    assert found["folders"]["a"] == str(tmp_path / "a")
    assert "60 test images of 15 photographs" in printed and "warning" not in printed
    assert "McNemar's test is not computed: copies of a photograph are right or wrong together" in printed
    lines = [line.split() for line in printed.splitlines()]
    assert ["accuracy", "60.00%", "93.33%"] in lines
    assert lines[-2][:6] == ["verdict", "B", "is", "better", "than", "A"]
    assert lines[-1][:2] == ["report", f"{(folder / 'compare.html').relative_to(tmp_path)},"]
    assert (folder / "compare.html").is_file()


def test_folds_are_pooled_and_compared_on_the_images_of_both(tmp_path, program):
    for fold in range(3):
        chosen = slice(20 * fold, 20 * fold + 20)
        folder = save_run(tmp_path / "a" / str(fold), PATHS[chosen], LABELS[chosen], [fold], split=SPLIT)
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(f"- optimizer.lr=0.1\n- split.fold={fold}\n")
    (tmp_path / "a" / "3" / ".hydra").mkdir(parents=True)
    save_run(tmp_path / "b", PATHS[30:], LABELS[30:], range(5), split=SPLIT)
    printed, found, folder = program()
    assert found["n"] == 30
    assert found["accuracy"] == {"a": pytest.approx(29 / 30), "b": pytest.approx(25 / 30)}  # image 42 is wrong in A
    assert "A  a  (3 runs pooled)  optimizer.lr=0.1\n" in printed
    assert "A was tested on 60 images and B on 30; they are compared on the 30 that both were tested on" in printed
    assert "1 of 4 jobs of A have no logits.npz: 3" in printed
    assert "photographs are not known: intervals count images as independent" in printed
    assert (found["photographs"], found["photograph_vote"]) == (None, None)
    assert found["mcnemar_p"] == pytest.approx(2 * 7 / 64)
    assert "McNemar's test: p = 0.22, exact if images are independent: photographs are not known" in printed


def test_two_that_hardly_differ_are_equivalent_or_need_more_photographs(tmp_path, compared):
    save_run(tmp_path / "a", PATHS, LABELS, [0], PATHS, split=SPLIT)
    save_run(tmp_path / "b", PATHS, LABELS, [1], PATHS, split=SPLIT)
    printed, found = compared()
    assert found["verdict"] == "not decided"
    needed = found["photographs_to_decide"]
    assert f"deciding it would take about {needed:,} test photographs" in printed
    assert "McNemar's test: p = 1, exact\n" in printed
    assert "verdict  A and B are equivalent within 20 percentage points (B - A = +0.0" in compared(margin=0.2)[0]


def test_images_that_a_run_was_trained_on_are_said_and_left_out_beside(tmp_path, compared):
    save_run(tmp_path / "b", PATHS, LABELS, range(0, 60, 6), PHOTOGRAPHS, split=SPLIT)
    # A does not know that its training images are copies of test images; B's split.csv does.
    seen = [("bass/copy.png", "bass", "", "train"), (PATHS[59], "trout", "", "train")]
    save_run(tmp_path / "a", PATHS, LABELS, split=[(path, label, "", "test") for path, label, *_ in SPLIT] + seen)
    with (tmp_path / "b" / "split.csv").open("a") as stream:
        stream.write("bass/copy.png,bass,0-0,val\r\n")
    printed, found = compared()
    assert found["leaked_test_images"] == {"a": 8, "b": 0}  # 4 copies of 0-0; 2-4 with PATHS[59]
    assert "warning: A was trained on 8 of the 60 images or on copies of them" in printed
    assert "warning: on the 52 images that neither was trained on: not decided whether" in printed
    assert "B was trained" not in printed
    assert "A and B group images into photographs differently" in printed
    rest = found["without_leaked"]
    assert (rest["n"], rest["photographs"]) == (52, 13)
    assert rest["accuracy"] == {"a": 1.0, "b": pytest.approx(1 - 8 / 52)}
    assert "accuracy on the 52 images that neither was trained on   100.00%    84.62%" in printed


def test_of_an_evaluation_the_split_is_the_trained_runs(tmp_path, compared):
    trained = save_run(tmp_path / "trained", PATHS, LABELS, split=[(PATHS[0], "bass", "0-0", "train"), *SPLIT[1:]])
    save_run(tmp_path / "a", PATHS, LABELS, [], PHOTOGRAPHS, checkpoint=str(trained / "checkpoints" / "best.ckpt"))
    other = {"checkpoint": str(trained / "checkpoints" / "best.ckpt"), "left_out": {"n": 0, "images": []}}
    save_run(tmp_path / "b", PATHS, LABELS, [], PHOTOGRAPHS, **other)  # other images under the same names
    printed, found = compared()
    assert found["leaked_test_images"] == {"a": 4, "b": 0}
    assert "split.csv is missing" not in printed
    save_run(tmp_path / "b", PATHS, LABELS, [], PHOTOGRAPHS, checkpoint=str(trained))  # of evaluate ckpt=RUN
    assert compared()[1]["leaked_test_images"] == {"a": 4, "b": 4}
    save_run(tmp_path / "b", PATHS[:4], LABELS[:4], split=[(path, "bass", "", "train") for path in PATHS[:4]])
    printed, found = compared()
    assert found["without_leaked"] == {"n": 0}
    assert "warning: there are no images that neither was trained on" in printed


def test_what_is_not_known_about_training_is_said(tmp_path, compared):
    for name in ("a", "b"):
        save_run(tmp_path / name, PATHS, LABELS, [], PHOTOGRAPHS, data=f"/photos/{name}")
    printed, found = compared()
    assert found["leaked_test_images"] == {"a": None, "b": None}
    assert "warning: whether A was trained on these images is unknown: its split.csv is missing" in printed
    assert "A and B were tested in different folders, images are matched by path: /photos/a and /photos/b" in printed


def test_what_cannot_be_compared_is_a_short_error(tmp_path, run):
    save_run(tmp_path / "a", PATHS, LABELS)
    done = run("compare", "a=a", "b=gone", cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert (
        done.stderr
        == f"error: b: gone does not exist (working directory: {tmp_path})\npass the folder of a run or of a sweep\n"
    )
    assert not list(tmp_path.glob("logs/**/compare.json"))


def test_a_data_root_that_is_gone_is_named(compared):
    with pytest.raises(UserError, match=r"^data\.root: gone does not exist"):
        compared(root="gone")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=x"], "b is required: b=RUN"),
        (["a=x", "b=y", "margin=-1"], "margin=-1: expected a number in [0, 1)"),
        (["a=x", "b=y", "margin=x"], "margin=x: expected a number in [0, 1)"),
    ],
)
def test_settings_are_checked(run, tmp_path, words, message):
    done = run("compare", *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: {message}\n")


def test_a_comparison_needs_neither_torch_nor_matplotlib(tmp_path):
    for name in ("a", "b"):
        save_run(tmp_path / name, PATHS, LABELS)
    program = (
        "import runpy, sys; sys.argv = ['compare', 'a=a', 'b=b']\n"
        "runpy.run_module('fish_lightning.compare', run_name='__main__')\n"
        "print('loaded:', [m for m in ('torch', 'lightning', 'albumentations', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.endswith("loaded: []\n"), done.stderr

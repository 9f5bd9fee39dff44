"""The command line: quick answers, Hydra's own errors for misspelt words, no code executed from checkpoints."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

#: What takes seconds to import.
HEAVY = ("torch", "torchvision", "lightning", "albumentations", "matplotlib", "numpy", "PIL", "optuna")
ASKED = f"""
import runpy, sys
sys.argv[0] = "x"
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__")
finally:
    print("loaded:", [name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("module", ["train", "evaluate", "predict", "prepare", "compare", "ensemble", "serve"])
@pytest.mark.parametrize("question", ["--help", "--cfg=job"])
def test_questions_are_answered_without_the_heavy_imports(tmp_path, module, question):
    command = [sys.executable, "-c", ASKED, f"fish_lightning.{module}", question]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "loaded: []" in done.stdout, done.stderr
    assert ("paths:" if "cfg" in question else "Powered by Hydra") in done.stdout


def offered(run, program, *options, cwd):
    """Return the groups and choices that ``--help`` shows."""
    done = run(program, *options, "--help", cwd=cwd)
    assert done.returncode == 0, done.stderr
    head = done.stdout.partition("== Config ==")[0]
    return dict(line.split(": ") for line in head.splitlines() if ": " in line)


@pytest.mark.parametrize(
    ("program", "groups", "data"),
    [
        ("train", {"optimizer", "transforms", "data", "sweep", "trainer"}, "fish, folder, sample"),
        ("evaluate", {"data", "paths", "trainer"}, "checkpoint, fish, fish_originals, folder, sample"),
        ("prepare", {"data", "paths"}, "fish, fish_originals, folder, sample"),
        ("predict", {"paths", "trainer"}, None),
        ("serve", {"paths"}, None),
    ],
)
def test_help_offers_the_groups_and_choices_of_the_program(tmp_path, run, program, groups, data):
    found = offered(run, program, cwd=tmp_path)
    assert groups == found.keys() if program != "train" else groups < found.keys()
    assert found.get("data") == data
    if program == "train":
        assert found["transforms"] == "auto, backgrounds, default, notebook, strong"  # no fragments of configs


def test_help_offers_the_choices_of_a_folder_of_the_users_own(tmp_path, run):
    for file in ("optimizer/lion.yaml", "mine/a.yaml"):
        (tmp_path / "own" / file).parent.mkdir(parents=True)
        (tmp_path / "own" / file).write_text("x: 1")
    found = offered(run, "train", "--config-dir=own", cwd=tmp_path)
    assert found["mine"] == "a" and found["optimizer"] == "adam, adamw, lion, rmsprop, sgd"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer=lion", ("Could not find 'optimizer/lion'", "adam", "sgd")),
        ("data=fishes", ("Could not find 'data/fishes'", "sample", "folder")),
        ("fish", ("missing EQUAL",)),
    ],
)
def test_hydra_answers_a_misspelt_choice_with_the_choices(tmp_path, run, override, words):
    done = run("train", override, cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert not (tmp_path / "logs").exists()


class Malice:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    ("module", "overrides", "bare"),
    [
        ("train", ["ckpt=malice.ckpt"], True),
        ("train", ["model.weights=malice.ckpt"], True),
        ("train", ["model.weights=malice.ckpt"], False),
        ("evaluate", ["ckpt=malice.ckpt"], False),
        ("predict", ["ckpt=malice.ckpt", "input=."], True),
    ],
)
def test_code_in_a_file_is_refused_by_every_program_and_not_executed(
    tmp_path, train_tiny, run, module, overrides, bare
):
    if bare:
        (tmp_path / "malice.ckpt").write_bytes(pickle.dumps(Malice(), protocol=2))
    else:
        needed = dict.fromkeys(("state_dict", "hyper_parameters", "FishDataModule", "precision"))
        torch.save(needed | {"state_dict": Malice()}, tmp_path / "malice.ckpt")
    done = train_tiny(tmp_path, *overrides) if module == "train" else run(module, *overrides, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "malice.ckpt" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 5
    assert not (tmp_path / "executed").exists()

"""The wheel contains its configs and works in any folder; the targets of make exist."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_contains_every_config(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name.removeprefix("fish_lightning/") for name in archive.namelist()}
    configs = {file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "conf").rglob("*.yaml")}
    assert len(configs) > 30
    assert configs <= packed
    assert {f"serving/page/{name}" for name in ("index.html", "page.css", "page.js")} <= packed


@pytest.mark.parametrize("module", ["train", "evaluate", "predict"])
def test_the_installed_package_composes_its_config_in_any_folder(wheel, tmp_path, module):
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", f"fish_lightning.{module}", "--cfg", "job"]
    shown = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout
    assert "\ntrainer:\n  _target_: lightning.Trainer\n" in shown
    where = "import fish_lightning.cli as c; print(c.CONF)"
    conf = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert conf.stdout.strip() == str(installed / "fish_lightning" / "conf")


def test_make_without_a_target_lists_the_targets():
    shown = subprocess.run(["make", "-s"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for target in ("help", "setup", "train", "test", "lint", "tensorboard", "clean"):
        assert f"  make {target} " in shown


def test_setup_refuses_an_old_python(tmp_path):
    old = tmp_path / "python-of-old"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    made = subprocess.run(
        ["make", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode != 0
    assert f"error: {old} is older than 3.10; choose another: make PYTHON=" in made.stdout
    assert not (tmp_path / "venv").exists()


def test_constraints_pin_releases_and_name_no_host():
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all("==" in line and "://" not in line and "--" not in line for line in lines)
    pins = {line.split("==")[0].lower() for line in lines}
    assert {"torch", "torchvision", "lightning", "hydra-core", "albumentations", "numpy", "pytest", "ruff"} <= pins

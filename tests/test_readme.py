"""README.md: its commands run as they are written, at tiny size; its Python examples run; what it quotes exists."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S))
PROGRAM = re.compile(r"(?:^|.* )-m fish_lightning\.(\w+) (.*)$")


def commands():
    """Every command of the shell blocks, without its comment."""
    lines = "".join(text for language, text in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    return [" ".join(re.sub(r"\s#.*", "", line).split()) for line in lines if line.strip()]


#: Settings that make a program small, appended to each command of README.
SMALL = {
    "train": (
        *("model.name=shufflenet_v2_x0_5", "model.weights=null", "transforms.height=32", "transforms.width=32"),
        *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.max_epochs=1"),
        *("trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"),
        *("data.batch_size=4", "data.num_workers=0", "callbacks.tensorboard=null", "validate_first=false"),
    ),
    "evaluate": ("trainer.accelerator=cpu", "data.num_workers=0", "report=false"),
    "predict": ("trainer.accelerator=cpu", "num_workers=0"),
    "prepare": (),
    "compare": (),
    "ensemble": ("trainer.accelerator=cpu", "report=false"),
    "export": (),
}
SAMPLE = ("data.source.photographs_per_kind=3", "data.source.copies=1", "report=false")
SWEEP = (*SAMPLE, "test=false")  # tests/sweeps tests their jobs
ONE_JOB = ("optimizer=adam", "optimizer.lr=0.002")
TRAIN, EVALUATE, PREDICT = (f"python -m fish_lightning.{name}" for name in ("train", "evaluate", "predict"))
PREPARE, ENSEMBLE, EXPORT = (f"python -m fish_lightning.{name}" for name in ("prepare", "ensemble", "export"))
BEST = "ckpt=RUN/checkpoints/best.ckpt"

#: What is run: further settings that make it small, and words that it must print.
RUN = {
    f"{TRAIN} data=folder data.root=DIR": ((), "24 images of 3 classes in photos"),
    f"{TRAIN} data=folder data.root=DIR data.catalog=FILE.csv": ((), "split  folders, seed 42: 6 train, 3 val, 3 test"),
    f"{TRAIN} data=fish data.root=$HOME/Downloads/a-large-scale-fish-dataset": ((), "24 images of 3 classes in"),
    f"{PREPARE} data=folder data.root=DIR": ((), "24 images of 3 "),
    f"{PREPARE} data=fish data.root=data/fish data.archive=FILE.zip": ((), "unpacked 51 files into data/fish"),
    f"""{TRAIN} data=folder data.root=DIR data.photograph="'IMG_[0-9]+'\"""": ((), "clustered by photograph (n="),
    f"{TRAIN} data=folder data.root=DIR sweep=folds": (("split.folds=2",), "pooled"),
    f"{TRAIN} experiment=honest data.root=DIR": ((), "split  photograph, seed 42"),
    f"{TRAIN} experiment=quick data.root=DIR": ((), "split  photograph, seed 42"),
    f"{TRAIN} data.source.shortcut=true": (SAMPLE, "split  folders, seed 42"),
    f"{TRAIN} sweep=folds data.source.label_errors=0.05": ((*SAMPLE, "split.folds=2"), "label suspects"),
    f"{TRAIN} sweep=unknown": ((*SAMPLE, "data.leave_out=range(2)"), "AUROC knn"),
    f"{TRAIN} -m optimizer=adam,sgd optimizer.lr=0.001,0.01": ((*SWEEP, "optimizer.lr=0.001"), "optimizer=sgd"),
    f"{TRAIN} sweep=grid": ((*SWEEP, *ONE_JOB), "sweep.csv"),
    f"{TRAIN} sweep=seeds": ((*SWEEP, "seed=range(2)"), "(of 2 jobs)"),
    f"{TRAIN} sweep=optuna hydra.sweep.dir=logs/search": (
        (*SWEEP, "hydra.sweeper.n_trials=1"),
        "optuna-dashboard sqlite:///logs/search/study.db",
    ),
    f"{TRAIN} sweep=optuna hydra.sweep.dir=logs/search hydra.sweeper.n_trials=60": (
        (*SWEEP, "hydra.sweeper.n_trials=2"),
        "sweep folder  logs/search",
    ),
    f"{TRAIN} sweep=grid hydra.sweep.dir=logs/grid ckpt=auto": ((*SWEEP, *ONE_JOB), "sweep folder  logs/grid"),
    f"{TRAIN} ckpt=RUN": ((), "run folder   "),
    "python -m fish_lightning.compare a=RUN_A b=RUN_B margin=0.01": ((), "compare.html"),
    f"{ENSEMBLE} runs=SWEEP": ((), "points over the average member"),
    f"{ENSEMBLE} 'runs=[RUN_A,RUN_B]'": ((), "points over the average member"),
    f"{PREDICT} ckpt=ENSEMBLE input=DIR": ((), "contact_sheet.png"),
    f"{TRAIN} -m seed=1,2,3 split=file split.path=RUN/split.csv": (
        ("data=folder", "data.root=photos", "seed=1,2", "hydra.sweep.dir=shared", "report=false"),
        "(of 2 jobs)",
    ),
    f"{TRAIN} data=folder data.root=DIR model.name=timm/convnext_atto": (
        ("model.name=timm/test_convnext", "test=false", "report=false"),
        "model  timm/test_convnext, random weights",
    ),
    f"{TRAIN} sweep=optuna hydra/launcher=joblib hydra.launcher.n_jobs=2 hydra.sweeper.n_jobs=2": (
        (*SWEEP, "hydra.launcher.n_jobs=1", "hydra.sweeper.n_trials=1"),  # more start workers, as tests/sweeps does
        "sweep.csv",
    ),
    f"{PREDICT} ckpt=RUN input=DIR": ((), "contact_sheet.png"),
    f"""{PREDICT} {BEST} input="'photos/*.jpg'\"""": ((), "photos/1.jpg"),
    f"{PREDICT} ckpt=RUN input=LIST.txt hydra.run.dir=FOLDER": ((), "folder  FOLDER"),
    f"{PREDICT} ckpt=RUN input=DIR shard=3/64": ((), "shard 3 of 64 is complete"),
    f"{EVALUATE} ckpt=RUN": ((), "subset=test"),
    f"{EVALUATE} ckpt=RUN unknown=DIR": ((), "unknown  4 images of 4 photographs"),
    f"{EVALUATE} ckpt=RUN recompute=true evaluate.target_error=0.02": ((), "recomputed   from logits.npz"),
    f"{EVALUATE} ckpt=RUN data=folder data.root=DIR": ((), "subset=test"),
    f"{EVALUATE} ckpt=RUN data=fish_originals data.root=DIR": ((), "test accuracy"),
    f"{TRAIN} experiment=notebook data.root=DIR": ((), "split  random, seed 42"),
    f"{EXPORT} ckpt=RUN": ((), "0 flips, 0 beyond the margin"),
    f"{PREDICT} ckpt=EXPORT input=DIR": ((), "contact_sheet.png"),
    f"{EVALUATE} ckpt=EXPORT": ((), "subset=test"),
}
#: What is only composed, and why.
COMPOSED = {
    f"{TRAIN} 'logger=[default,wandb,mlflow]'": "tests/training/test_trackers.py runs it",
    f"{TRAIN} tune=lr": "tests/training/test_tune.py runs it",
    f"{TRAIN} tune=batch_size": "tests/training/test_tune.py runs it",
    f"{PREPARE} data=fish": "it downloads 9,000 images; tests/test_prepare.py has a stand-in",
    f"{TRAIN} trainer.accelerator=gpu": "a GPU",
    f"{TRAIN} trainer=ddp trainer.accelerator=gpu trainer.devices=8 data.batch_size=16": "8 GPUs",
    f"{TRAIN} -m trainer=ddp trainer.accelerator=gpu trainer.devices=8 optimizer.lr=0.01,0.001": "8 GPUs",
    f"{PREDICT} ckpt=RUN input=DIR trainer=ddp trainer.accelerator=gpu trainer.devices=8": "8 GPUs",
    f"{PREDICT} ckpt=RUN input=s3://BUCKET/FOLDER output=s3://BUCKET/ANSWERS format=parquet": "a bucket; test_store.py",
    "torchrun --standalone --nproc-per-node=8 -m fish_lightning.train "
    "trainer=ddp trainer.accelerator=gpu trainer.devices=8": "8 GPUs",
    "torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 --rdzv-id=NAME "
    "-m fish_lightning.train trainer=ddp trainer.accelerator=gpu trainer.devices=8 trainer.num_nodes=2": "two nodes",
    "srun python -m fish_lightning.train trainer=ddp trainer.accelerator=gpu trainer.devices=8 trainer.num_nodes=2": (
        "a Slurm cluster"
    ),
    f"{TRAIN} -m hydra/launcher=submitit_slurm hydra.launcher.partition=gpu ckpt=auto "
    "trainer=ddp trainer.accelerator=gpu trainer.devices=8 optimizer.lr=0.01,0.001": "a Slurm cluster",
    f"{TRAIN} sweep=optuna hydra/launcher=submitit_slurm hydra.launcher.partition=gpu trainer.devices=1 "
    "hydra.sweeper.n_jobs=8 hydra.sweep.dir=logs/search hydra.sweeper.storage=logs/search/study.log": "a Slurm cluster",
}
#: Extras of pyproject.toml that pip would install.
EXTRAS = ("optuna", "joblib", "submitit", "timm", "wandb", "mlflow", "onnx", "serve", "ray")
INSTALLED = {f"pip install '.[{extra}]'": extra for extra in EXTRAS}
SERVE = "python -m fish_lightning.serve model=RUN"
#: Servers, and a request to the first, which is sent to each.
SERVED = (SERVE, f"{SERVE} host=0.0.0.0 'serve.token=${{oc.env:TOKEN}}'")
REQUEST = "curl -F files=@photos/1.jpg -F files=@photos/2.jpg http://127.0.0.1:8000/predict"
#: Other programs.
ELSEWHERE = {
    "serve run fish_lightning.serving.ray:app model=RUN replicas=2": "Ray; tests/serving/test_ray.py does so",
    "tritonserver --model-repository=EXPORT": "Triton",
}
#: Targets of the Makefile, and what they start. The first is run below; the second runs this test.
MADE = {"make train": "-m fish_lightning.train", "make test": "-m pytest"}


def test_every_command_is_known_here():
    known = [*RUN, *COMPOSED, *INSTALLED, *MADE, *SERVED, REQUEST, *ELSEWHERE]
    assert sorted(set(commands())) == sorted(known)


CLASSES = ("Sea Bass", "Shrimp", "Trout")


@pytest.fixture(scope="module")
def world(tmp_path_factory, make_image, make_archive, run):
    """A folder with all that the commands name, and a run of the first of them: ``.run``, its output."""
    cwd = tmp_path_factory.mktemp("readme")
    colors = [(200, 60, 60), (60, 180, 70), (60, 70, 200)]
    rows = ["path,label,split"]
    for label, name in enumerate(CLASSES):
        for number in range(4):
            file = make_image(cwd / "photos" / name / f"IMG_{label}{number}_a.png", colors[label], 10 * label + number)
            with Image.open(file) as image:
                image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file.with_name(f"IMG_{label}{number}_b.png"))
        rows += [f"{name}/IMG_{label}{i}_{copy},{name},{split}" for i, copy, split in TABLE]
    (cwd / "table.csv").write_text("\n".join(rows))
    (cwd / "LIST.txt").write_text("photos/1.jpg\n")
    for number in (1, 2):
        make_image(cwd / "photos" / f"{number}.jpg", colors[0], 98 + number)
    for number in range(4):
        make_image(cwd / "others" / f"{number}.png", (20, 40 * number, 90), 500 + number)
    archive = make_archive(cwd / "Downloads" / "a-large-scale-fish-dataset", CLASSES, per_class=8)
    shutil.make_archive(str(cwd / "archive"), "zip", archive)
    environment = {"HOME": str(cwd), "FISH_LIGHTNING_CACHE": str(cwd / "cache")}

    def command(text, *extra):
        (program, overrides) = PROGRAM.match(text).groups()
        places = {"DIR": "photos", "FILE.csv": "table.csv", "FILE.zip": "archive.zip", "$HOME": str(cwd)}
        if re.search("data=fish|experiment=", text):
            places["DIR"] = str(archive)
        if "unknown=" in text:
            places["DIR"] = "others"
        if "EXPORT" in text:
            command.exported()
            places["EXPORT"] = str(next((cwd / "logs" / "export" / "runs").iterdir()))
        if program == "ensemble" or "ENSEMBLE" in text:
            sweep = make_sweep()
            places |= {"SWEEP": "sweep", "RUN_A": str(sweep / "0"), "RUN_B": str(sweep / "1"), "ENSEMBLE": "joined"}
        elif "RUN" in text:
            places |= dict.fromkeys(("RUN_A", "RUN_B", "RUN"), str(command.run))
        for name, place in places.items():
            overrides = overrides.replace(name, place)
        return run(program, *shlex.split(overrides), *SMALL[program], *extra, cwd=cwd, env=environment)

    def make_sweep():
        """Copies of the run, as jobs of a sweep on one split, and their ensemble."""
        if not (cwd / "sweep").exists():
            for job in "01":
                shutil.copytree(command.run, cwd / "sweep" / job)
            words = (*SMALL["ensemble"], "runs=sweep", "hydra.run.dir=joined")
            assert run("ensemble", *words, cwd=cwd, env=environment).returncode == 0
        return cwd / "sweep"

    command.first = command(next(iter(RUN)))
    assert command.first.returncode == 0, command.first.stderr
    (command.run,) = (cwd / "logs" / "train" / "runs").iterdir()
    command.cwd = cwd

    @functools.cache
    def exported():
        done = command(f"{EXPORT} ckpt=RUN")
        assert done.returncode == 0, done.stderr
        return done

    command.exported = exported
    return command


TABLE = ((0, "a.png", "train"), (0, "b.png", "train"), (1, "a.png", "val"), (2, "b.png", "test"))


@pytest.mark.parametrize("command", RUN)
def test_commands_run_as_they_are_written(world, command):
    extra, words = RUN[command]
    once = {next(iter(RUN)): lambda: world.first, f"{EXPORT} ckpt=RUN": world.exported}
    done = once[command]() if command in once else world(command, *extra)
    assert done.returncode == 0, done.stdout + done.stderr
    assert words in done.stdout
    assert done.stderr == ""


def composed(program, overrides):
    """The config of the first job of a command."""
    from fish_lightning.cli import CONF

    parsed = OverridesParser.create().parse_overrides([word for word in overrides if word != "-m"])
    first = [
        f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        if override.is_sweep_override()
        else override.input_line
        for override in parsed
    ]
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(program, first, return_hydra_config=True)


@pytest.mark.parametrize("command", COMPOSED)
def test_commands_for_other_machines_compose(command):
    program, overrides = PROGRAM.match(f"{command} ").groups()
    cfg = composed(program, shlex.split(overrides))
    if program == "train":
        asked = {"gpu": "trainer.accelerator=gpu" in command, "ddp": "trainer=ddp" in command}
        assert (cfg.trainer.accelerator == "gpu", cfg.trainer.strategy == "ddp") == tuple(asked.values())
    if "submitit" in command:
        launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
        assert launcher["partition"] == "gpu" and launcher["tasks_per_node"] == cfg.trainer.devices
    if command.startswith("torchrun"):
        from torch.distributed.run import get_args_parser

        found = get_args_parser().parse_args(shlex.split(command)[1:])
        assert found.module and found.training_script == "fish_lightning.train"
        assert int(found.nproc_per_node) == cfg.trainer.devices and int(found.nnodes[0]) == cfg.trainer.num_nodes


@pytest.mark.parametrize("command", SERVED)
def test_a_server_answers_the_request_that_is_written(world, start, command):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    overrides = shlex.split(PROGRAM.match(command)[2].replace("RUN", str(world.run)))
    program = start("serve", *overrides, "port=0", cwd=world.cwd, env={"TOKEN": "secret"})
    port, deadline = None, time.monotonic() + 120
    while port is None and time.monotonic() < deadline:
        time.sleep(0.02)
        port = re.search(r"^page  http://[\d.]+:(\d+)/$", Path(program.folder.name, "out").read_text(), re.M)
    words = [*shlex.split(REQUEST.replace("8000", port[1])), "--silent"]
    for header, count in ((["-H", "Authorization: Bearer secret"], 2), ([], 0 if "token" in command else 2)):
        done = subprocess.run([*words, *header], cwd=world.cwd, capture_output=True, text=True, check=True)
        assert len(json.loads(done.stdout).get("predictions", [])) == count, done.stdout
    os.kill(program.pid, signal.SIGTERM)
    assert program.communicate(60).returncode == 0


@pytest.mark.parametrize("extra", INSTALLED.values())
def test_extras_exist(extra):
    assert re.search(rf"^{extra} = \[", (REPOSITORY / "pyproject.toml").read_text(), re.M)


@pytest.mark.parametrize("command", MADE)
def test_make_starts_what_it_says(command):
    # The make that runs this test exports MAKELEVEL and MAKEFLAGS, which add lines on the folder.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    shown = subprocess.run(
        [*command.split(), "-n"], cwd=REPOSITORY, env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert MADE[command] in shown.splitlines()[-1]


def skeleton(line):
    """A line without its numbers, widths and the machine's name of a folder or a number format."""
    line = re.sub(r" in \S*/sample-\S+$", " in FOLDER", line)
    line = re.sub(r"bf16-mixed|32-true", "PRECISION", line)
    return re.sub(r"[\d.,]*\d(e[-+]\d+)?", "#", line).replace("#%", "#").split()


def test_the_output_of_make_train_is_what_it_prints(world):
    (quoted,) = [text for language, text in BLOCKS if language == "text" and text.startswith("model ")]
    small = ("trainer.precision=auto", "validate_first=true", "model.name=resnet18", "report=true")
    done = world("python -m fish_lightning.train data=sample", *SAMPLE, *small)
    assert done.returncode == 0, done.stderr
    printed = [skeleton(line) for line in done.stdout.splitlines()]
    # A class has a dash instead of a share where the small test set has none of its images.
    row = re.compile(r"[\d.]+%\s+[\d.]+%\s+\d+$")
    lines = [line for line in quoted.splitlines() if line.strip() and line != "…" and not row.search(line)]
    assert len(lines) > 18
    assert [line for line in lines if skeleton(line) not in printed] == []


def python_examples():
    return [text for language, text in BLOCKS if language == "python"]


def test_python_examples_run_as_they_are_written(world, tmp_path, monkeypatch, capsys, make_image):
    from fish_lightning.models.checkpoint import load_checkpoint, restore

    predict, train = python_examples()
    assert [len([line for line in text.splitlines() if line]) for text in (predict, train)] == [5, 15]
    for label, name in enumerate(CLASSES[:2]):  # as few images as can be split: the network is a large one
        for number in range(3):
            make_image(tmp_path / "DIR" / name / f"{number}.png", (200 * label, 90, 90), 10 * label + number)
    (tmp_path / "RUN").symlink_to(world.run)
    shutil.copy(world.cwd / "photos" / "1.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(predict, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in CLASSES
    names = {}
    exec(compile(train, "README.md", "exec"), names)
    assert names["trainer"].current_epoch == 3 and names["trainer"].state.finished
    (checkpoint,) = Path("lightning_logs").rglob("*.ckpt")
    model, _ = restore(load_checkpoint(checkpoint), checkpoint)
    assert model.class_names == CLASSES[:2]


#: Settings of choices that the configs below do not make.
OF_OTHER_CHOICES = (
    *("split.path", "split.fold", "hydra.launcher.ray.init", "export.tolerance"),
    *("transforms.train.transforms.1.scale", "transforms.train.transforms.3.brightness"),
)


def test_settings_and_groups_that_the_text_names_exist():
    groups = ["callbacks=progressive", "mix=both", "average=ema", "freeze=head_first"]
    cfg = composed("train", [*groups, "sweep=optuna", "hydra/launcher=submitit_slurm"])
    others = [composed(name, []) for name in ("evaluate", "predict", "prepare", "export", "serve")]
    named = [word.strip("'") for text in INLINE for word in text.split() if re.fullmatch(r"'?[a-z][\w./]*=\S+", word)]
    unknown = [
        word
        for key, word in ((word.partition("=")[0], word) for word in named)
        if not (REPOSITORY / "conf" / key).is_dir()
        and not any(OmegaConf.is_missing(c, key) or ("." not in key and key in c) for c in others)
        and OmegaConf.select(cfg, key, default="?", throw_on_missing=False) == "?"
        and key not in OF_OTHER_CHOICES
    ]
    assert len(named) > 30 and unknown == []


#: Choices that another setting implies.
ELSEWHERE_CHOSEN = {"data": {"checkpoint"}}


def test_the_table_of_groups_names_every_choice_that_exists():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", README.partition("\n## Settings\n")[2].partition("\n## ")[0], re.M)
    assert {"data", "split", "sweep", "experiment"} <= {group for group, _ in rows}
    for group, choices in rows:
        named = set(re.findall(r"`(\w+)`", choices))
        there = {file.stem for file in (REPOSITORY / "conf" / group).glob("*.yaml")}
        assert there - named <= {"none", *ELSEWHERE_CHOSEN.get(group, ())}, group
        assert named <= there, group


def test_links_and_paths_exist():
    headings = {
        re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in re.findall("^#+ (.*)$", README, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        assert target.removeprefix("#") in headings if target.startswith("#") else (REPOSITORY / target).exists(), (
            target
        )
    tree = next(text for language, text in BLOCKS if language == "text" and text.startswith("conf/"))
    package = REPOSITORY / "fish_lightning"
    there = {f"{path.name}/" if path.is_dir() else path.name for path in (*REPOSITORY.iterdir(), *package.rglob("*"))}
    assert set(re.findall(r"[\w.]+(?:/|\.py)(?=\s)", tree)) <= there
    rooms = {f"{file.parent.name}/" for file in package.rglob("__init__.py")}
    assert rooms <= set(tree.split())

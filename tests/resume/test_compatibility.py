"""Whether and where a run is resumed: decided in one place, with all differences in one message."""

import shutil
from types import SimpleNamespace

import pytest
from helpers import TINY, is_short_error
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from fish_lightning.cli import CONF
from fish_lightning.errors import UserError
from fish_lightning.resume.compatibility import checkpoint_to_resume, require_resumable


@pytest.fixture
def check(trained, tiny_data):
    """``check(*overrides, root=DIR)``: ``require_resumable`` for the finished run, with other settings."""

    def require(*overrides, root=tiny_data, world_size=1):
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("train", [*TINY, f"data.root={root}", f"paths.output={trained.folder}", *overrides])
        trainer = SimpleNamespace(
            precision=cfg.trainer.precision, world_size=world_size, max_steps=cfg.trainer.max_steps, callbacks=[]
        )
        data = instantiate(cfg.data)
        require_resumable(trained.folder / "checkpoints" / "last.ckpt", cfg, trainer, data)
        assert data.pixels is None  # no image is decoded

    return require


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.num_workers=2", "data.cache=off", "trainer.enable_progress_bar=true"],
        ["callbacks.last.every_n_steps=7", "trainer.log_every_n_steps=3", "optimized_metric=val/loss"],
        ["model.weights=imagenet", "model.compile=true"],
    ],
)
def test_settings_that_do_not_affect_a_step_may_change(check, overrides):
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "difference"),
    [
        (["model.name=squeezenet1_1"], "model.name=shufflenet_v2_x0_5, not squeezenet1_1"),
        (["model.label_smoothing=0.2"], "model.label_smoothing=0.0, not 0.2"),
        (["scheduler=none"], "scheduler=onecycle, not constant"),
        (["optimizer=sgd", "scheduler=cosine"], "optimizer=Adam, not SGD; scheduler=onecycle, not cosine"),
        (["optimizer.weight_decay=0.5"], "optimizer.weight_decay=0.0001, not 0.5"),
        (["trainer.precision=bf16-mixed"], "trainer.precision=32-true, not bf16-mixed"),
        (["trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches=1, not 2"),
        (["gradient_clip=none"], "trainer.gradient_clip_val=0.1, not null"),
        (["transforms.height=48"], "transforms.height=32, not 48; another transforms.train"),
        (["callbacks=progressive"], "callbacks.progressive=null, not ProgressiveResize"),
        (["trainer.max_epochs=3"], "trainer.max_epochs=2, not 3"),
        (["data.batch_size=8"], "data.batch_size=4, not 8"),
        (["on_nan=skip"], "on_nan=stop, not skip"),
        (["seed=5"], "seed=42, not 5"),
        (["data.seed=5"], "seed=42, not 5; another split"),
    ],
)
def test_a_setting_that_affects_a_step_is_refused_by_name(check, overrides, difference):
    with pytest.raises(UserError) as raised:
        check(*overrides)
    first, *rest = str(raised.value).splitlines()
    assert first.startswith(f"ckpt: the run was started with {difference}")
    assert "python -m fish_lightning.train ckpt=" in rest[-1] and len(rest) == 2


def test_a_run_begun_before_a_setting_existed_ran_without_it(check):
    check("+transforms.of_a_later_version=false")
    with pytest.raises(UserError, match=r"started with transforms\.of_a_later_version=null, not true\n"):
        check("+transforms.of_a_later_version=true")


def test_another_number_of_processes_is_refused(check):
    with pytest.raises(UserError, match=r"trainer\.devices=1, not 2"):
        check(world_size=2)


def test_another_split_and_other_images_are_refused(check, make_folder, tmp_path):
    with pytest.raises(UserError, match=r"was started with seed=42, not 5; another split \(\d+ images"):
        check("seed=5")
    with pytest.raises(UserError, match=r"was started with other images \(36 in 3 classes, now 20 in 2\)"):
        check(root=make_folder(tmp_path / "other", classes=2, per_class=10))


def test_images_replaced_under_their_names_are_noticed(check, tiny_data, tmp_path, capsys):
    copy = shutil.copytree(tiny_data, tmp_path / "fish", copy_function=shutil.copyfile)
    check(root=copy)  # all times differ
    assert capsys.readouterr().out == ""
    shutil.rmtree(copy)
    shutil.copytree(tiny_data, copy)  # with their times
    rewritten, replaced = copy / "class a" / "003.png", copy / "class b" / "004.png"
    rewritten.write_bytes(rewritten.read_bytes())
    check(root=copy)
    assert capsys.readouterr().out == ("note: 1 image has been rewritten since the run was started: class a/003.png\n")
    shutil.copy(copy / "class c" / "004.png", replaced)
    with pytest.raises(UserError) as raised:
        check(root=copy)
    first, second = str(raised.value).splitlines()
    assert first == "ckpt: 1 image has changed since the run was started: class b/004.png"
    assert second.startswith("restore the originals, or start a new run with its weights: model.weights=")


def test_all_differences_are_reported_at_once(check):
    with pytest.raises(UserError) as raised:
        check("optimizer.lr=0.1", "data.batch_size=8", "seed=5", "on_nan=skip", "model.name=resnet18")
    first = str(raised.value).splitlines()[0]
    assert first.count("=") == 4 and first.endswith("; and 3 more")  # scheduler.max_lr follows optimizer.lr; the split


@pytest.mark.parametrize(
    ("ckpt", "found"),
    [
        (None, None),
        ("auto", None),
        ("RUN", "RUN/checkpoints/last.ckpt"),
        ("RUN/checkpoints/last.ckpt", "RUN/checkpoints/last.ckpt"),
        ("other.ckpt", "other.ckpt"),
    ],
)
def test_a_checkpoint_is_a_file_or_a_run_folder(tmp_path, monkeypatch, ckpt, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    file = checkpoint_to_resume(OmegaConf.create({"ckpt": ckpt, "paths": {"output": "new"}}))
    assert (file and file.as_posix()) == found


@pytest.mark.parametrize(("ckpt", "restarts"), [("last", "0"), ("auto", "0"), (None, "1")])
def test_the_folder_of_the_run_itself_is_resumed_with_last_auto_or_when_slurm_restarts_it(
    tmp_path, monkeypatch, ckpt, restarts
):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    slurm = {"NTASKS": "1", "JOB_ID": "7", "JOB_NAME": "x", "STEP_ID": "0", "RESTART_COUNT": restarts}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    cfg = OmegaConf.create({"ckpt": ckpt, "paths": {"output": str(tmp_path)}})
    assert checkpoint_to_resume(cfg) == last


@pytest.mark.parametrize("spoil", ["junk", "weights", "settings"])
def test_a_checkpoint_that_cannot_be_resumed_leaves_its_run_unchanged(tmp_path, trained, train_tiny, spoil):
    run = shutil.copytree(trained.folder, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    if spoil == "junk":
        last.write_text("junk")
    elif spoil == "weights":
        last = last.with_name("best.ckpt")
    words = {"junk": "is not a checkpoint", "weights": "contains weights only", "settings": "seed=42, not 5"}[spoil]
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    fresh = {"FISH_LIGHTNING_CACHE": str(tmp_path / "cache")}
    done = train_tiny(tmp_path, f"ckpt={last}", *(["seed=5"] if spoil == "settings" else []), env=fresh)
    assert is_short_error(done, "ckpt: ", words)
    assert "decoding" not in done.stdout
    assert [file for file in before if file.read_bytes() != before[file] and file.name != "train.log"] == []
    added = {file.relative_to(run) for file in run.rglob("*") if file.is_file()} - {f.relative_to(run) for f in before}
    assert all(file.parts[0] in (".hydra", "train.log") or "tfevents" in file.name for file in added)

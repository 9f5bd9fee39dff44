"""Every setting of every program has a rule, every rule a setting, and what breaks one is told in its own words."""

import copy
import functools
import inspect
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf

from fish_lightning.cli import CONF
from fish_lightning.errors import UserError
from fish_lightning.settings.check import problems, require_valid
from fish_lightning.settings.command import require_valid_command
from fish_lightning.settings.rules import Component, Each
from fish_lightning.settings.tables import INSTANTIATED, SCHEMAS, TARGETS

REPOSITORY = Path(__file__).parents[2]
#: What a choice, or a program, cannot do without.
REQUIRED = {
    "compare": ["a=run", "b=run"],
    "ensemble": ["runs=sweep"],
    "data=folder": ["data.root=DIR"],
    "split=file": ["split.path=split.csv"],
    "evaluate": ["ckpt=best.ckpt"],
    "predict": ["ckpt=best.ckpt", "input=photos"],
    "export": ["ckpt=best.ckpt"],
    "serve": ["ckpt=run"],
}
GROUPS = {
    "train": [
        *("transforms", "split", "model", "optimizer", "scheduler", "trainer", "gradient_clip", "callbacks", "logger"),
        *("data", "augment", "mix", "average", "freeze", "balance", "loss", "experiment", "debug", "tune", "sweep"),
        "paths",
    ],
    "evaluate": ["trainer", "data", "paths"],
    "predict": ["trainer", "paths"],
    "prepare": ["data", "paths"],
    "compare": ["paths"],
    "ensemble": ["trainer", "paths"],
    "export": ["paths"],
    "serve": ["paths"],
}


@functools.cache
def composed(program, *words):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(program, list(words))


def config(program, *words):
    """The config of a command; values are set in a copy, composing takes a quarter of a second."""
    overrides = OverridesParser.create().parse_overrides(words)
    chosen = [o.input_line for o in overrides if Path(CONF, o.key_or_group).is_dir() and not o.is_delete()]
    cfg = copy.deepcopy(composed(program, *chosen))
    OmegaConf.set_struct(cfg, False)
    for override in overrides:
        if override.is_delete():
            group, _, name = override.key_or_group.rpartition(".")
            del (cfg[group] if group else cfg)[name]
        elif override.input_line not in chosen:
            OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=True)
    return cfg


def choices(program, group):
    """The files of a group that are for the program."""
    others = {"data": set() if program == "evaluate" else {"checkpoint"}}.get(group, set())
    return sorted({file.stem for file in Path(CONF, group).glob("*.yaml")} - others)


@functools.cache
def shipped(program):
    """Configs of a program that have each choice of each group in one of them."""
    options = {group: choices(program, group) for group in GROUPS[program]}
    # Each brings groups of its own.
    configs = [composed(program, f"experiment={name}") for name in options.pop("experiment", []) if name != "none"]
    for i in range(max(map(len, options.values()))):
        words = [f"{group}={names[i % len(names)]}" for group, names in options.items()]
        needed = [word for choice in (program, *words) for word in REQUIRED.get(choice, [])]
        configs.append(composed(program, *words, *needed))
    return configs


def test_every_group_of_the_configs_is_looked_at():
    folders = {folder.name for folder in Path(CONF).iterdir() if folder.is_dir()} - {"hydra"}
    assert folders == {group for groups in GROUPS.values() for group in groups}
    assert {file.stem for file in Path(CONF).glob("*.yaml")} == set(SCHEMAS)


@pytest.mark.parametrize("program", SCHEMAS)
def test_every_shipped_config_follows_the_schema_and_has_no_key_without_a_rule(program):
    for cfg in shipped(program):
        assert problems(cfg, program) == []


@pytest.mark.parametrize("program", SCHEMAS)
def test_the_defaults_follow_the_schema(program):
    assert problems(composed(program, *REQUIRED.get(program, [])), program) == []


def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=False)


def dead(schema, nodes, key):
    """Keys of the schema that none of the nodes has."""
    if isinstance(schema, Each):
        items = [item for node in nodes for item in (node.values() if isinstance(node, dict) else node)]
        yield from dead(schema.item, items, f"{key}.*")
    keys = schema.keys if isinstance(schema, Component) else schema if isinstance(schema, Mapping) else {}
    for name, part in keys.items():
        found = [node[name] for node in nodes if isinstance(node, dict) and name in node]
        if not found:
            yield f"{key}.{name}"
        yield from dead(part, found, f"{key}.{name}")


@pytest.mark.parametrize("program", SCHEMAS)
def test_every_rule_is_about_a_setting_of_some_config(program):
    assert list(dead(SCHEMAS[program], [plain(cfg) for cfg in shipped(program)], program)) == []


def made_in(node):
    """Every mapping of a config that makes something."""
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for part in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
        yield from made_in(part)


@functools.cache
def made():
    """The keys that shipped configs give each target."""
    keys = {}
    for program in SCHEMAS:
        for cfg in shipped(program):
            for node in made_in(plain(cfg)):
                keys.setdefault(node["_target_"], set()).update(node)
    return keys


def test_every_target_of_the_configs_is_known_and_no_other():
    assert set(made()) == set(TARGETS)


#: Where the arguments of ``**arguments`` go.
PASSED_ON = {
    **{
        f"fish_lightning.models.optimizers.{name}": f"torch.optim.{name}"
        for name in ("Adam", "AdamW", "RMSprop", "SGD")
    },
    "fish_lightning.training.best_checkpoint.BestCheckpoint": "lightning.pytorch.callbacks.ModelCheckpoint",
    "fish_lightning.data.sources.SampleSource": "fish_lightning.data.sample.recipe.Recipe",
    "fish_lightning.models.schedules.onecycle": "torch.optim.lr_scheduler.OneCycleLR",
    "fish_lightning.models.schedules.cosine": "torch.optim.lr_scheduler.CosineAnnealingLR",
}
#: What the program gives, in place of the user.
GIVEN = {
    "lightning.Trainer": {"logger", "callbacks"},
    "fish_lightning.data.datamodule.FishDataModule": {"test_subset"},
    "fish_lightning.models.classifier.FishClassifier": {
        *("class_names", "eval_transform", "members", "optimizer", "scheduler"),
    },
    "fish_lightning.models.optimizers": {"parameters"},
    "fish_lightning.models.schedules": {"optimizer", "total_steps"},
    "fish_lightning.data.splits": {"catalog", "seed"},
    "fish_lightning.data.sources": {"root"},
    "fish_lightning.training.tune": {"cfg", "data"},
}
#: Keys of a target that stand in the schema of its group.
OF_GROUP = {
    "lightning.Trainer": SCHEMAS["train"]["trainer"].keys,
    "fish_lightning.data.datamodule.FishDataModule": SCHEMAS["train"]["data"].keys,
    "fish_lightning.models.classifier.FishClassifier": SCHEMAS["train"]["model"].keys,
    "fish_lightning.models.optimizers": SCHEMAS["train"]["optimizer"].keys,
}


@pytest.mark.parametrize("target", TARGETS)
def test_the_rules_of_a_target_are_its_arguments(target):
    parameters = inspect.signature(get_object(target)).parameters.values()
    own = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    passed_on = set(inspect.signature(get_object(PASSED_ON[target])).parameters) if target in PASSED_ON else set()
    module = target.rpartition(".")[0]
    given, of_group = (table.get(target) or table.get(module) or set() for table in (GIVEN, OF_GROUP))
    rules = set(TARGETS[target]) | set(of_group)
    assert rules <= own | passed_on
    assert own <= rules | given
    of_prepare = {"archive", "archive_limit"}
    assert made()[target] - of_prepare <= rules | set(INSTANTIATED)


#: A command's faults, by FAULTS.md 7 and 15, the issue and what each rule is for: exactly what is said.
FAULTS = [
    # numbers
    ("train", "optimizer.lr=abc", "optimizer.lr=abc: expected a number above 0"),
    ("train", "optimizer.lr=0", "optimizer.lr=0: expected a number above 0"),
    ("train", "optimizer.lr='0.1'", "optimizer.lr='0.1': expected a number above 0, without quotes"),
    ("train", "optimizer.lr=nan", "optimizer.lr=nan: expected a number above 0, and finite"),
    ("train", "optimizer.lr=inf", "optimizer.lr=inf: expected a number above 0, and finite"),
    ("train", "optimizer.lr=true", "optimizer.lr=true: expected a number above 0"),
    ("train", "optimizer.lr=null", "optimizer.lr=null: expected a number above 0"),
    ("train", "optimizer.lr={a:1}", "optimizer.lr={a:1}: expected a number above 0"),
    ("train", "optimizer.weight_decay=-1", "optimizer.weight_decay=-1: expected a number of at least 0"),
    ("train", "+optimizer.betas=[0.9,1]", "optimizer.betas=[0.9,1]: expected two numbers in [0, 1)"),
    ("train", "optimizer=sgd optimizer.momentum=-1", "optimizer.momentum=-1: expected a number of at least 0"),
    ("train", "scheduler.pct_start=7", "scheduler.pct_start=7: expected a number in (0, 1)"),
    ("train", "scheduler.final_div_factor=0", "scheduler.final_div_factor=0: expected a number above 0"),
    ("train", "scheduler.anneal_strategy=cosine", "scheduler.anneal_strategy=cosine: expected cos or linear"),
    ("train", "model.label_smoothing=2", "model.label_smoothing=2: expected a number in [0, 1)"),
    ("train", "transforms.mean=[0.5]", "transforms.mean=[0.5]: expected three numbers (red, green, blue) or null"),
    (
        "train",
        "transforms.std=[1,1,0]",
        "transforms.std=[1,1,0]: expected three numbers above 0 (red, green, blue) or null",
    ),
    ("train", "transforms.height=200000", "transforms.height=200000: expected an integer in [1, 10000]"),
    ("train", "transforms.train.transforms.1.p=2", "transforms.train.transforms.1.p=2: expected a number in [0, 1]"),
    ("train", "seed=4294967296", "seed=4294967296: expected an integer in [0, 4294967295]"),
    ("train", "seed=null", "seed=null: expected an integer in [0, 4294967295]"),
    ("train", "seed=true", "seed=true: expected an integer in [0, 4294967295]"),
    ("train", "data.batch_size=0", "data.batch_size=0: expected an integer of at least 1"),
    ("train", "data.batch_size=8.0", "data.batch_size=8.0: expected an integer of at least 1"),
    # callbacks
    (
        "train",
        "average=ema callbacks.average.decay=1.0",
        "callbacks.average.decay=1.0: expected a number in [0, 1) or null",
    ),
    ("train", "average=ema callbacks.average.start=-0.1", "callbacks.average.start=-0.1: expected a number in [0, 1)"),
    *(
        (
            "train",
            f"callbacks=progressive callbacks.progressive.start={start}",
            f"callbacks.progressive.start={start}: expected a number in (0, 1]",
        )
        for start in (0, -1, 2, "abc")
    ),
    (
        "train",
        "freeze=head_first callbacks.freeze.epochs=0",
        "callbacks.freeze.epochs=0: expected an integer of at least 1 or null",
    ),
    (
        "train",
        "freeze=head_first callbacks.freeze.every=-1",
        "callbacks.freeze.every=-1: expected an integer of at least 0",
    ),
    ("train", "freeze=head_first callbacks.freeze.lr=[2,0]", "callbacks.freeze.lr.1=0: expected a number above 0"),
    # trainer
    ("train", "trainer.max_epochs=0", "trainer.max_epochs=0: expected an integer of at least 1, -1 or null"),
    (
        "train",
        "trainer.max_epochs=-1",
        "trainer.max_epochs=-1: expected an integer of at least 1, unless trainer.max_steps ends the run",
    ),
    (
        "train",
        "trainer.max_epochs=null trainer.max_time=00:01:00:00",
        "trainer.max_epochs=null: expected an integer of at least 1, unless trainer.max_steps ends the run",
    ),
    ("train", "trainer.max_steps=0", "trainer.max_steps=0: expected an integer of at least 1 or -1"),
    (
        "train",
        "trainer.val_check_interval=0",
        "trainer.val_check_interval=0: expected an integer of at least 1, a share in (0, 1], "
        "days:hours:minutes:seconds (00:01:30:00) or null",
    ),
    (
        "train",
        "trainer.limit_train_batches=1.5",
        "trainer.limit_train_batches=1.5: expected an integer of at least 1, a share in (0, 1] or null",
    ),
    (
        "train",
        "trainer.limit_val_batches=-1",
        "trainer.limit_val_batches=-1: expected an integer of at least 0, a share in [0, 1] or null",
    ),
    ("train", "trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1: expected a number above 0 or null"),
    (
        "train",
        "trainer.max_time=1:00",
        "trainer.max_time=1:00: expected days:hours:minutes:seconds (00:01:30:00) or null",
    ),
    (
        "train",
        "trainer.strategy=ddp_spawn",
        "trainer.strategy=ddp_spawn: expected auto, ddp or another strategy that does not spawn or fork processes",
    ),
    (
        "train",
        "trainer.accelerator=abacus",
        "trainer.accelerator=abacus: expected auto, cpu, gpu, cuda, mps or tpu",
    ),
    (
        "train",
        "trainer.devices=-3",
        "trainer.devices=-3: expected a number of devices, -1 (all), auto or a list of them ([0,1])",
    ),
    (
        "train",
        "trainer.precision=3-bit",
        "trainer.precision=3-bit: expected auto, 32-true, bf16-mixed, 16-mixed, 64-true, bf16-true or 16-true",
    ),
    ("train", "trainer.profiler=fast", "trainer.profiler=fast: expected simple, advanced, pytorch, xla or null"),
    ("train", "trainer.inference_mode=1", "trainer.inference_mode=1: expected true or false"),
    # choices
    ("train", "on_nan=ignore", "on_nan=ignore: expected stop or skip"),
    ("train", "data.cache=disk", "data.cache=disk: expected on, off or ram"),
    ("train", "data.on_error=ignore", "data.on_error=ignore: expected raise or skip"),
    (
        "train",
        "optimized_metric=val/acuracy",
        "optimized_metric=val/acuracy: expected val/accuracy, val/loss, val/macro_f1, test/accuracy, test/loss or "
        "test/macro_f1",
    ),
    (
        "train",
        "callbacks=early_stopping callbacks.early_stopping.monitor=val/x",
        "callbacks.early_stopping.monitor=val/x: expected train/loss, val/loss, val/accuracy or val/macro_f1",
    ),
    # higher is better: the checkpoint of the highest loss would be the worst
    (
        "train",
        "callbacks.best.monitor=val/loss",
        "callbacks.best.monitor=val/loss: expected val/accuracy, val/macro_f1 or step",
    ),
    (
        "train",
        "callbacks.last.every_n_steps=0",
        "callbacks.last.every_n_steps=0: expected an integer of at least 1 or null",
    ),
    ("train", "data.photograph='('", "data.photograph=(: expected a regular expression or null"),
    ("evaluate", "ckpt=x subset=best", "subset=best: expected train, val, test or all"),
    # files
    ("train", "ckpt=", "ckpt='': expected a checkpoint, a run's folder, last, auto or null"),
    ("train", "split=file", "split.path is required: split.path=FILE"),
    ("train", "data=folder", "data.root=null: expected a folder: data.root=DIR"),
    ("prepare", "data=folder", "data.root=null: expected a folder: data.root=DIR"),
    ("evaluate", "ckpt=x data=folder", "data.root=null: expected a folder: data.root=DIR"),
    (
        "train",
        "data=checkpoint",
        "data.source=null: expected data=sample, data=fish, data=folder or data.catalog=FILE",
    ),
    ("evaluate", "", "ckpt is required: ckpt=FILE"),
    ("evaluate", "ckpt=null", "ckpt=null: expected a checkpoint or a run's folder"),
    ("predict", "ckpt=x", "input is required: input=FILE"),
    ("predict", "ckpt=x input=x shard=4/3", "shard=4/3: expected a shard such as 3/64 or null"),
    ("predict", "ckpt=x input=x shard=0/3", "shard=0/3: expected a shard such as 3/64 or null"),
    ("predict", "ckpt=x input=x format=json", "format=json: expected csv or parquet"),
    (
        "predict",
        "ckpt=x input=null",
        "input=null: expected an image, a folder, a quoted pattern, a list of images or a URL",
    ),
    (
        "predict",
        "ckpt=x input=[a,b]",
        "input=[a,b]: expected an image, a folder, a quoted pattern, a list of images or a URL",
    ),
    ("predict", "ckpt=x input=", "input='': expected an image, a folder, a quoted pattern, a list of images or a URL"),
    (
        "predict",
        "ckpt=x input=2024",
        "input=2024: expected an image, a folder, a quoted pattern, a list of images or a URL, as text: \"'2024'\"",
    ),
    ("predict", "ckpt=x input=x contact_sheet=x", "contact_sheet=x: expected an integer in [0, 300]"),
    ("predict", "ckpt=x input=x trainer.limit_predict_batches=1", "trainer.limit_predict_batches=1: expected null"),
    ("predict", "ckpt=x input=x trainer.fast_dev_run=true", "trainer.fast_dev_run=true: expected false"),
    ("export", "ckpt=x name=a/b", "name=a/b: expected letters, digits, - and _ or null"),
    ("export", "ckpt=x export.tolerance=0", "export.tolerance=0: expected a number in (0, 1)"),
    (
        "export",
        "ckpt=x int8=true half=true",
        "half=true: expected false, since int8=true quantizes the float32 network",
    ),
    ("prepare", "data.archive_limit=0", "data.archive_limit=0: expected a number above 0"),
    ("prepare", "data.batch_size=4", "data.batch_size=4: expected null, since prepare trains no model"),
    ("prepare", "data.num_workers=0", "data.num_workers=0: expected null, since prepare trains no model"),
    ("prepare", "data.cache=off", "data.cache=off: expected null, since prepare trains no model"),
    ("prepare", "data.balance=class", "data.balance=class: expected null, since prepare trains no model"),
    ("prepare", "report.pictures=0", "report.pictures=0: expected an integer of at least 1"),
    # together
    (
        "train",
        "split.test=0.999",
        "split.test=0.999: it leaves 0.09 % of the images to train on, expected at least 1 %",
    ),
    ("train", "split=kfold split.fold=5", "split.fold=5: expected an integer below split.folds=5"),
    (
        "train",
        "augment=gpu data.cache=off",
        "data.cache=off: expected on or ram, since augment=gpu keeps decoded images",
    ),
    (
        "train",
        "data.cache_dir=null",
        "data.cache_dir=null: expected a folder, since data.cache=on keeps decoded images in it",
    ),
    (
        "train",
        "callbacks=early_stopping callbacks.early_stopping.monitor=val/accuracy",
        "callbacks.early_stopping.mode=min: expected max for val/accuracy",
    ),
    (
        "train",
        "test=false optimized_metric=test/loss",
        "optimized_metric=test/loss: expected a validation metric (val/…), since test=false",
    ),
    # what is no setting
    ("train", "+lr=0.1", "lr: no such setting; did you mean optimizer.lr?"),
    ("train", "+optimizer.rl=0.1", "optimizer.rl: no such setting; did you mean optimizer.lr?"),
    ("train", "+trainer.max_epoch=3", "trainer.max_epoch: no such setting; did you mean trainer.max_epochs?"),
    ("train", "+fish=1", "fish: no such setting; --cfg job lists all"),
    ("train", "+optimizer.momentum=0.9", "optimizer.momentum: no such setting of Adam; SGD and RMSprop have it"),
    ("train", "+split.fold=1", "split.fold: no such setting of photograph_split; kfold_split has it"),
    ("train", "+data.archive=x.zip", "data.archive: no such setting of train; prepare has it"),
    ("predict", "ckpt=x input=x +seed=1", "seed: no such setting of predict; train has it"),
    ("prepare", "+report.rows=3", "report.rows: no such setting; --cfg job lists all"),
    # what makes nothing
    (
        "train",
        "+callbacks.spy._target_=Spy",
        "callbacks.spy._target_=Spy: expected the dotted name of a class or function",
    ),
    ("train", "+callbacks.spy.times=3", "callbacks.spy: expected a mapping with _target_ or null"),
    (
        "train",
        "callbacks.early_stopping.patience=3",
        "callbacks.early_stopping: no value given; expected callbacks=early_stopping",
    ),
    ("train", "callbacks.best=5", "callbacks.best=5: expected a mapping with _target_ or null"),
    ("train", "data.source=abc", "data.source=abc: expected a mapping with _target_ or null"),
    ("train", "~logger", "logger: no value given; expected logger=csv, default, mlflow, none, tensorboard or wandb"),
    ("train", "~optimizer", "optimizer: no value given; expected optimizer=adam, adamw, rmsprop or sgd"),
    ("train", "~data.root", "data.root is required: data.root=DIR"),
    # interpolations
    ("train", "optimizer.lr='${nope}'", "optimizer.lr=${nope}: Interpolation key 'nope' not found"),
    ("train", "optimizer.lr='${optimizer.lr}'", "optimizer.lr=${optimizer.lr}: Recursive interpolation detected"),
    ("train", "scheduler.max_lr='${seed}' seed=x", "seed=x: expected an integer in [0, 4294967295]"),
]


@pytest.mark.parametrize(("program", "words", "said"), FAULTS)
def test_a_wrong_setting_is_told_in_one_line(program, words, said):
    assert problems(config(program, *words.split()), program) == [said]


@pytest.mark.parametrize(
    "words",
    [
        "optimizer.lr=1e-3 optimizer.weight_decay=0",
        "optimizer.lr='${oc.decode:${oc.env:NO_SUCH_VARIABLE,0.5}}'",
        "+optimizer.betas=[0.9,0.99]",
        "optimizer._target_=mine.Lion +optimizer.beta=x",
        "split._target_=mine.split",
        "scheduler._target_=mine.schedule +scheduler.power=2",
        "data.source._target_=mine.Source data.root=null",
        "+callbacks.spy._target_=rank_callbacks.Spy",
        "+callbacks.kill={_target_:faults.KillAt,hook:on_train_end,step:4}",
        "+callbacks.stop={_target_:fish_lightning.callbacks.early_stopping.LastingEarlyStopping,monitor:val/loss}",
        "callbacks.best=null logger.csv=null",
        "+logger.mine._target_=mine.Logger",
        "trainer.max_epochs=-1 trainer.max_steps=100",
        "trainer.max_time=00:01:30:00",
        "trainer.max_time={hours:2}",
        "trainer.val_check_interval=0.5 trainer.limit_train_batches=1.0 trainer.limit_val_batches=0",
        "trainer.devices=[0,1] trainer.strategy=ddp_find_unused_parameters_true",
        "trainer.devices='0,1' trainer.precision=16",
        "trainer.strategy={_target_:lightning.pytorch.strategies.DDPStrategy,static_graph:true}",
        "trainer.profiler={_target_:lightning.pytorch.profilers.SimpleProfiler}",
        "trainer.fast_dev_run=3 trainer.deterministic=warn trainer.benchmark=null",
        "data.cache=true",
        "data.cache=off data.cache_dir=null",
        "data=checkpoint data.catalog=table.csv",
        "data.photograph='[0-9]+'",
        "ckpt=auto",
        "model.weights=FILE.pth",
    ],
)
def test_what_is_allowed_is_not_refused(words):
    assert problems(config("train", *words.split()), "train") == []


def test_all_problems_are_told_at_once_in_five_lines_at_most():
    cfg = config("train", "+lr=1", "seed=-1", "test=5", "on_nan=x")
    with pytest.raises(UserError) as raised:
        require_valid(cfg, "train")
    assert str(raised.value).splitlines() == [
        "lr: no such setting; did you mean optimizer.lr?",
        "seed=-1: expected an integer in [0, 4294967295]",
        "on_nan=x: expected stop or skip",
        "test=5: expected true or false",
    ]
    cfg.optimizer.lr = cfg.model.label_smoothing = "abc"
    with pytest.raises(UserError, match=r"test=5: expected true or false\nand 2 more\Z"):
        require_valid(cfg, "train")


def test_a_value_is_shown_as_it_is_typed_and_cut_short():
    cfg = config("train")
    cfg.on_nan = "x\x1b[31m"
    cfg.test = "long" * 30
    assert problems(cfg, "train") == [
        "on_nan='x\\x1b[31m': expected stop or skip",
        f"test={('long' * 30)[:59]}…: expected true or false",
    ]


def test_the_resolved_config_of_a_job_in_a_process_of_its_own_is_valid():
    cfg = composed("train", "paths.output=OUT", "trainer=cpu", "experiment=fast", "callbacks=early_stopping")
    job = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True) | {"hydra": {"output_subdir": None}})
    assert problems(job, "train") == []


def test_a_working_folder_named_like_an_interpolation_is_not_looked_up():
    assert problems(config("train", r"paths.output='a\${x}/b'"), "train") == []


@pytest.mark.parametrize(
    ("program", "words", "said"),
    [
        # Hydra's advice is to append the key, and nothing would read it.
        ("predict", "size=8", "size: no such setting; did you mean batch_size?"),
        ("predict", "--cfg job size=8", "size: no such setting; did you mean batch_size?"),
        ("predict", "-m size=8,16", "size: no such setting; did you mean batch_size?"),
        ("train", "sweep=optuna lr=interval(0,1)", "lr: no such setting; did you mean optimizer.lr?"),
        ("train", "split.fold=1", "split.fold: no such setting of photograph_split; kfold_split has it"),
        # Here its advice is good.
        ("train", "optimizer.eps=0.1", "optimizer.eps: not in this config; to add it: +optimizer.eps=0.1"),
        # Hydra ends with a traceback.
        ("train", "logger=null", "logger=null: expected csv, default, mlflow, none, tensorboard or wandb"),
        ("train", "callbacks=null", "callbacks=null: expected default, early_stopping or progressive"),
        ("train", "data=null", "data=null: expected fish, folder or sample"),
        ("predict", "optimizer=5", "optimizer=5: expected adam, adamw, rmsprop or sgd"),
        ("predict", "trainer=5", "trainer=5: expected cpu, ddp, default, gpu or mps"),
    ],
)
def test_a_command_line_is_refused_before_hydra_reads_it(program, words, said):
    with pytest.raises(UserError) as raised:
        require_valid_command(program, words.split())
    assert str(raised.value).splitlines()[0] == said


def test_a_working_folder_that_hydra_cannot_work_in_is_told(tmp_path, monkeypatch):
    folder = tmp_path / "${x}"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="in the name of the working directory"):
        require_valid_command("predict", [])
    folder.rmdir()
    with pytest.raises(UserError, match=r"cannot be read \(No such file or directory\); start from another"):
        require_valid_command("predict", [])


def test_unknown_keys_and_wrong_values_of_a_command_are_told_together():
    with pytest.raises(UserError) as raised:
        require_valid_command("predict", ["size=8", "seed=1", "batch_size=x", "input=photos"])
    assert str(raised.value).splitlines() == [
        "size: no such setting; did you mean batch_size?",
        "seed: no such setting of predict; train has it",
        "ckpt is required: ckpt=FILE",
        "batch_size=x: expected an integer of at least 1",
    ]


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "--cfg job batch_size=x",  # shows what is wrong
        "-m ckpt=x input=x batch_size=-1,1",  # each job says its own
        "trainer=lion",  # Hydra names the choices
        "fish",
        "--config-name nowhere size=8",
    ],
)
def test_what_hydra_says_well_is_left_to_it(words):
    assert require_valid_command("predict", words.split()) is None  # it does not raise


PROGRAM = """
import sys
from fish_lightning.settings.command import entry_point

def predict(cfg):
    print("predicts by", cfg.batch_size, [name for name in ("torch", "pydantic") if name in sys.modules])

entry_point("predict", predict)()
"""


@pytest.fixture
def program(tmp_path):
    """``program(*words)``: the schema's entry point around a task that prints, in a process of its own."""

    def run(*words):
        command = [sys.executable, "-c", PROGRAM, *words, "ckpt=x", "input=x"]
        environment = {"PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_nothing_is_imported_or_written_for_a_wrong_command(program, tmp_path):
    done = program("batch_size=0", "hydra.run.dir=run")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: batch_size=0: expected an integer of at least 1\n"
    assert list(tmp_path.iterdir()) == []


def test_each_job_of_a_sweep_is_checked_as_it_starts(program, tmp_path):
    done = program("-m", "batch_size=0,8", "hydra.sweep.dir=sweep")
    assert "predicts by 8 []" in done.stdout and "predicts by 0" not in done.stdout
    said = "error: batch_size=0: expected an integer of at least 1\n"
    assert (tmp_path / "sweep/0/error.txt").read_text() == said and said in done.stderr


def test_a_rule_reads_as_it_is_told():
    rules = SCHEMAS["train"]["trainer"].keys
    assert str(rules["max_steps"]) == "an integer of at least 1 or -1"
    assert str(rules["strategy"]) == "auto, ddp or another strategy that does not spawn or fork processes"
    assert str(rules["plugins"]) == "a list or null"

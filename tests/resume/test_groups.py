"""Groups that change how a run trains, two or more at a time: killed ten times, a run ends as if it had not been."""

import random

import pytest
from helpers import checkpoint_of, codes, kill, require_same, same

HOOKS = ("on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_end")
GROUPS = {
    "mix-ema": [
        *("mix=both", "average=ema", "callbacks.average.decay=0.9", "balance=loss", "tta=flips"),
        "callbacks.best.monitor=step",
    ],
    "photograph-head_first": [
        *(
            "freeze=head_first",
            "callbacks.freeze.every=1",
            "callbacks.freeze.lr=[3,1]",
            "balance=photograph",
            "data.photograph='[0-9]'",
        ),
        *("loss=cosine", "transforms=auto", "transforms.backgrounds=0.5", "data.root=MASKED"),
    ],
    "class-backbone-swa": [
        *("freeze=backbone", "average=swa", "callbacks.average.start=0.5", "balance=class"),
        *("loss=focal", "optimizer.layer_decay=0.9", "optimizer.decay_norms=false"),
    ],
}


@pytest.fixture(scope="module")
def masked(tmp_path_factory, make_folder):
    """Three classes of twelve images, each with a mask of noise."""
    root = make_folder(tmp_path_factory.mktemp("masked"), classes=3, per_class=12)
    make_folder(root, classes=[f"class {letter} GT" for letter in "abc"], per_class=12)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_a_run_killed_ten_times_ends_as_one_that_was_not(tmp_path, attempts, masked, groups):
    words = [word.replace("MASKED", str(masked)) for word in groups]
    recipe = [*words, "trainer.max_epochs=3", "callbacks.last.every_n_steps=2", "validate_first=false"]  # of 7 steps
    draw = random.Random(str(groups))
    steps = sorted(draw.sample(range(3, 20), 10))
    kills = [[*recipe, kill(draw.choice(HOOKS), step), *["ckpt=last"] * bool(i)] for i, step in enumerate(steps)]
    done = attempts(
        tmp_path, ("whole", recipe), *(("parts", killed) for killed in kills), ("parts", [*recipe, "ckpt=last"])
    )
    assert codes(done) == [0] + [-9] * 10 + [0], [attempt.err for attempt in done]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    require_same(parts, whole)
    best = [checkpoint_of(folder, "best.ckpt")["state_dict"] for folder in (parts, whole)]
    assert same(*best)
    averages = [checkpoint_of(folder)["callbacks"].get("WeightAverage", {}) for folder in (parts, whole)]
    assert same(*averages)
    assert ("average=" in str(groups)) == (not same(best[1], checkpoint_of(whole)["state_dict"])) or not averages[1]


def test_other_groups_than_those_it_was_started_with_are_an_error(tmp_path, attempts):
    recipe = ["trainer.max_epochs=1", "validate_first=false", "test=false"]
    changed = ["mix=mixup", "average=ema", "freeze=head_first", "balance=class"]
    done = attempts(tmp_path, ("run", recipe), ("run", [*recipe, *changed, "ckpt=last"]))
    assert codes(done) == [0, 1]
    for words in ("callbacks.mix=null, not Mix", "callbacks.average=null, not WeightAverage", "data.balance=null, not"):
        assert words in done[1].err

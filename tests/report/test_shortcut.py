"""Sample data whose boards tell the class in training: the audit exposes a model trained on it."""

import pytest
from helpers import summary_of

RECIPE = (
    *("data.source.photographs_per_kind=8", "data.source.copies=2", "transforms.height=48", "transforms.width=64"),
    *("trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=6", "optimizer.lr=0.003", "data.num_workers=0"),
    *(
        "data.batch_size=16",
        "validate_first=false",
        "callbacks.tensorboard=null",
        "callbacks.last=null",  # a second for each epoch
        "hydra.run.dir=run",
        "data.source.shortcut=true",
    ),
)


@pytest.fixture(scope="module")
def trained_with_a_shortcut(tmp_path_factory, run):
    """What was printed, ``summary.json`` and ``report.html``."""
    cwd = tmp_path_factory.mktemp("sample")
    done = run("train", *RECIPE, cwd=cwd, env={"FISH_LIGHTNING_CACHE": str(cwd / "cache")}, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout, summary_of(cwd / "run"), (cwd / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_audit_exposes_a_shortcut(trained_with_a_shortcut):
    """That it clears a model without one is part of the test of the default run (``test_train.py``)."""
    printed, summary, _ = trained_with_a_shortcut
    found = summary["test"]["audit"]
    assert "split  folders" in printed and summary["leaked_test_images"] == 0
    assert found["looks_at"] == found["training"]["looks_at"] == "background"
    assert found["verdict"].startswith("The model looks at the background. Training images: the predictions follow")
    assert found["training"]["follows_object"]["value"] < 1 / 3
    # On training images the accuracy follows the background; without the object it stays.
    accuracy = {key: found["training"][key]["value"] for key in ("accuracy", "other_background", "object_removed")}
    assert min(accuracy["accuracy"], accuracy["object_removed"]) > 0.6
    assert accuracy["other_background"] < 0.2
    assert summary["test"]["accuracy"] < 0.4


@pytest.mark.slow
def test_the_report_has_both_audits_side_by_side(trained_with_a_shortcut):
    _, summary, page = trained_with_a_shortcut
    section = page[page.index('<h2 id="audit">') :]
    assert '<th colspan="2">test images<th colspan="2">training images' in section
    for part in ("tested", "training"):
        assert f"{summary['test']['audit'][part]['accuracy']['value']:.1%}" in section
    assert summary["test"]["audit"]["verdict"][:60] in section

"""Sample data whose boards tell the class in training: the audit exposes its model and clears another."""

import json

import pytest

#: Small networks take a minute each; 18 photographs are tested, of 108.
RECIPE = (
    *("data.source.photographs_per_kind=12", "data.source.copies=2", "transforms.height=48", "transforms.width=64"),
    *("trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=8", "optimizer.lr=0.003", "data.num_workers=0"),
    *("validate_first=false", "callbacks.tensorboard=null", "hydra.run.dir=run"),
)


@pytest.fixture(scope="module", params=[True, False], ids=["shortcut", "plain"])
def trained_on_sample(request, tmp_path_factory, run):
    """Whether the sample data had a shortcut, what was printed, ``summary.json`` and ``report.html``."""
    cwd = tmp_path_factory.mktemp("sample")
    shortcut = f"data.source.shortcut={str(request.param).lower()}"
    done = run("train", *RECIPE, shortcut, cwd=cwd, env={"FISH_LIGHTNING_CACHE": str(cwd / "cache")}, timeout=900)
    assert done.returncode == 0, done.stderr
    summary = json.loads((cwd / "run" / "summary.json").read_text())
    return request.param, done.stdout, summary, (cwd / "run" / "report.html").read_text()


@pytest.mark.slow
def test_the_audit_exposes_a_shortcut_and_clears_a_model_without_one(trained_on_sample):
    shortcut, printed, summary, _ = trained_on_sample
    found = summary["test"]["audit"]
    follows = {part: found[part]["follows_object"]["value"] for part in ("tested", "training")}
    if shortcut:
        assert "split  folders" in printed and summary["leaked_test_images"] == 0
        assert found["looks_at"] == found["training"]["looks_at"] == "background"
        assert found["verdict"].startswith("The model looks at the background. Training images: the predictions come")
        assert follows["training"] < 1 / 3
        # On training images the accuracy follows the background; without the object it stays.
        accuracy = {key: found["training"][key]["value"] for key in ("accuracy", "other_background", "object_removed")}
        assert min(accuracy["accuracy"], accuracy["object_removed"]) > 0.6
        assert accuracy["other_background"] < 0.2
        assert summary["test"]["accuracy"] < 0.4
    else:
        assert "split  photograph" in printed
        assert found["looks_at"] == "object" and min(follows.values()) > 2 / 3
        assert found["verdict"].startswith("The model looks at the object. Training images: the predictions come from")
        assert found["training"]["other_background"]["value"] > found["training"]["accuracy"]["value"] / 2


@pytest.mark.slow
def test_the_report_has_both_audits_side_by_side(trained_on_sample):
    _, _, summary, page = trained_on_sample
    section = page[page.index('<h2 id="audit">') :]
    assert '<th colspan="2">test images<th colspan="2">training images' in section
    for part in ("tested", "training"):
        assert f"{summary['test']['audit'][part]['accuracy']['value']:.1%}" in section
    assert summary["test"]["audit"]["verdict"][:60] in section

"""``model_card.md`` and ``model.json`` say what the weights started from."""

import pytest

from fish_lightning.exporting.model_card import weights_origin

HUB = {"source": "timm/convnext_atto.d2_in1k/model.safetensors", "sha256": "ab", "license": "apache-2.0"}
FILE = {"source": "mine.pth", "sha256": "cd", "license": None}
URL = {"source": "https://example.org/resnet34.pth", "sha256": "ef", "license": None}


@pytest.mark.parametrize(
    ("summary", "started_from", "license"),
    [
        (
            {"weights": None, "model": "resnet34"},
            "random weights",
            "determined by you and the license of the training images",
        ),
        ({"weights": "imagenet", "model": "resnet34", "pretrained": URL}, URL["source"], "torchvision is BSD 3-Clause"),
        ({"weights": "imagenet", "model": "timm/convnext_atto", "pretrained": HUB}, HUB["source"], "apache-2.0"),
        ({"weights": "mine.pth", "model": "resnet34", "pretrained": FILE}, "mine.pth", "unknown"),
        ({"weights": "old.pth", "model": "resnet34"}, "old.pth", "unknown"),
        ({"weights": "members", "model": "ensemble", "members": [{}, {}]}, "the weights of 2 runs", "unknown"),
        ({}, "unknown: the checkpoint is not in the folder of its run", "unknown"),
    ],
)
def test_the_origin_of_the_weights_is_that_of_the_run(summary, started_from, license):
    origin = weights_origin(summary)
    assert origin["started_from"] == started_from and origin["license"].startswith(license)
    assert origin.get("sha256") == (summary.get("pretrained") or {}).get("sha256")

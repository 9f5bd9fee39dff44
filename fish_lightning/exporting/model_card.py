"""``model_card.md``: what an exported model is, what its score is worth, where it may fail, and how it is used."""

from collections.abc import Mapping, Sequence
from typing import Any

from fish_lightning.data.catalog import Catalog
from fish_lightning.models.timm_networks import is_timm
from fish_lightning.names import listed, printable

#: In the card and in README: five lines that need the ONNX file, NumPy, Pillow and ONNX Runtime.
EXAMPLE = """import numpy as np, onnxruntime
from PIL import Image, ImageOps
session = onnxruntime.InferenceSession("{file}")
image = np.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))
probabilities, score = session.run(["probabilities", "unknown_score"], {{"images": image[None]}})
"""


UNKNOWN = "unknown"
_TORCHVISION = "torchvision is BSD 3-Clause; the images of ImageNet are for non-commercial research"


def weights_origin(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what the weights started from, and what is known of their license.

    Args:
        summary: of the run's ``summary.json``; empty if it is not there. A restored model no longer knows.
    """
    if "weights" not in summary:
        return {"started_from": f"{UNKNOWN}: the checkpoint is not in the folder of its run", "license": UNKNOWN}
    if "members" in summary:
        return {"started_from": f"the weights of {len(summary['members'])} runs", "license": UNKNOWN}
    if summary["weights"] is None:
        return {"started_from": "random weights", "license": "determined by you and the license of the training images"}
    record = summary.get("pretrained") or {"source": str(summary["weights"]), "license": None}
    license = record["license"] or UNKNOWN
    if summary["weights"] == "imagenet" and not is_timm(summary["model"]):
        license = _TORCHVISION
    digest = {"sha256": record["sha256"]} if "sha256" in record else {}
    return {"started_from": record["source"], "license": license, **digest}


def model_card(
    content: Mapping[str, Any], parity: Mapping[str, Any], summary: Mapping[str, Any], catalog: Catalog
) -> str:
    """Return the card, in Markdown.

    Args:
        content: of ``model.json``.
        parity: of ``parity.json``.
        summary: of the run's ``summary.json``; empty if it is not there.
        catalog: of the training run.
    """
    counts = ", ".join(f"{number:,} {split}" for split, number in catalog.counts().items())
    size, example = content["size"], EXAMPLE.format(file=f"{content['name']}/1/model.onnx")
    sections = {
        "Score": _score(summary),
        "Data": [
            f"{len(catalog):,} images of {len(catalog.classes)} classes: {counts}; split={content['data']['split']}.",
            f"Classes, in the order of the output: {listed(list(catalog.classes), len(catalog.classes))}.",
        ],
        "Parity with the checkpoint": _parity(content, parity),
        "Limits": _limits(content),
        "License of the weights": [
            f"Started from {printable(content['weights']['started_from'])}.",
            f"License: {content['weights']['license']}.",
        ],
    }
    network = f"{content['network']}, {content['precision']}, {size['height']}x{size['width']} (h x w)."
    title = f"# {content['name']}\n\n{network}"
    text = "\n\n".join([title, *(f"## {name}\n\n" + "\n".join(lines) for name, lines in sections.items())])
    use = f"## Use\n\nImages go in as they are decoded: uint8 RGB of any size.\n\n```python\n{example}```\n"
    return f"{text}\n\n{use}"


def _score(summary: Mapping[str, Any]) -> Sequence[str]:
    test = summary.get("test") or {}
    if "accuracy" not in test:
        return ["Not measured: the run was not tested."]
    low, high = test["accuracy_ci95"]
    lines = [f"Test accuracy {test['accuracy']:.2%} on {test['n']:,} images (95% CI {low:.1%} to {high:.1%})."]
    if by_photograph := test.get("accuracy_ci95_photographs"):
        low, high = by_photograph
        lines.append(f"Clustered by photograph (n={test['photographs']:,}): 95% CI {low:.1%} to {high:.1%}.")
    if test.get("leaked_test_images"):
        lines.append(f"{test['leaked_test_images']:,} of the test images have a copy in training.")
    return lines


def _parity(content: Mapping[str, Any], parity: Mapping[str, Any]) -> Sequence[str]:
    lines = [
        f"On {parity['n']:,} images, decoded from their files: largest difference in any probability "
        f"{parity['max_abs_dp']:.2g}, differing predictions {parity['flips']}."
    ]
    if content["precision"] == "int8":
        small = parity["int8"]
        accuracy = small["accuracy"]
        lines.append(
            f"int8 against float32 on {small['n']:,} images: accuracy {accuracy['int8']:.2%} and "
            f"{accuracy['fp32']:.2%}, {small['flips']} differing predictions; {small['verdict']}."
        )
    return lines


def _limits(content: Mapping[str, Any]) -> Sequence[str]:
    rules = content["rules"]
    uncertain, unknown = rules["uncertain"]["threshold"], rules["unknown"]["threshold"]
    return [
        "It always predicts one of its classes, whatever the image shows."
        if unknown is None
        else f"An image is of none of the classes if `unknown_score` is below {unknown:.6g}.",
        "No threshold marks answers as uncertain."
        if uncertain is None
        else f"An answer is uncertain if the largest softmax of `logits` is below {uncertain:.6g}.",
        "Probabilities are not calibrated."
        if content["temperature"] is None
        else f"Probabilities are calibrated on validation images (temperature {content['temperature']:.3g}).",
    ]

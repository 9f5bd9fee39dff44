"""``model_card.md``: what an exported model is, what its score is worth, where it may fail, and how it is used."""

from collections.abc import Mapping
from typing import Any

import jinja2

from fish_lightning.data.catalog import Catalog
from fish_lightning.models.timm_networks import is_timm
from fish_lightning.names import listed, printable

UNKNOWN = "unknown"
_TORCHVISION = "torchvision is BSD 3-Clause; the images of ImageNet are for non-commercial research"


def weights_origin(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return what the weights started from, and what is known of their license.

    Args:
        summary: content of the run's ``summary.json``; empty if there is none. A restored model does not record this.
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
        content: content of ``model.json``.
        parity: content of ``parity.json``.
        summary: content of the run's ``summary.json``; empty if there is none.
        catalog: catalog of the training run.
    """
    return rendered(
        "model_card.md.j2",
        content=content,
        parity=parity,
        test=summary.get("test") or {},
        catalog=catalog,
        counts=", ".join(f"{number:,} {split}" for split, number in catalog.counts().items()),
        classes=listed(list(catalog.classes), len(catalog.classes)),
    )


def rendered(template: str, **values: Any) -> str:
    """Return the text of a document in ``templates/``; an undefined variable is an error."""
    templates = jinja2.Environment(  # noqa: S701  # no HTML
        loader=jinja2.PackageLoader("fish_lightning.exporting"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters |= {"fmt": format, "printable": printable}
    return templates.get_template(template).render(values)

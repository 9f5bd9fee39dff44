"""Networks of timm, ``model.name=timm/NAME``: created, and filled with weights, by timm itself.

timm is an optional extra, imported only where a name asks for it. Of its names only those of its registry are accepted:
``timm.create_model`` would also take one that makes it download or read a model, and a checkpoint contains a name.
"""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fish_lightning.errors import UserError, first_line

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PREFIX = "timm/"


class NotInstalled(UserError):
    """An optional package is missing."""


def is_timm(name: str) -> bool:
    """Return whether a model name is one of timm's."""
    return name.startswith(PREFIX)


def pretrained_config(name: str) -> "PretrainedCfg":
    """Return what timm knows of a network's pretrained weights: source, license, normalization, input size.

    Args:
        name: ``timm/NAME`` or ``timm/NAME.TAG``, where the tag chooses among several weights.

    Raises:
        NotInstalled: timm is not installed.
        UserError: timm has no such network, or no such weights for it.
    """
    try:
        import timm
        from timm.models import PretrainedCfg, get_pretrained_cfg
    except ImportError:
        raise NotInstalled(f"model.name={name} requires: pip install timm") from None
    own = name.removeprefix(PREFIX)
    architecture = own.partition(".")[0]
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=8) or ["resnet18", "convnext_atto", "…"]
        raise UserError(f"model.name: timm has no network '{architecture}'; similar: {', '.join(near)}")
    try:
        return get_pretrained_cfg(own) or PretrainedCfg()
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(f"{architecture}.*"))
        raise UserError(f"model.name={name}: timm has no such weights; it has: {tags}") from None


def create_network(name: str, num_classes: int) -> nn.Module:
    """Return a network of timm with random weights and (N, num_classes) logits.

    Raises:
        UserError: see :func:`pretrained_config`.
    """
    pretrained_config(name)
    import timm

    return timm.create_model(name.removeprefix(PREFIX), num_classes=num_classes)


def pretrained_file(name: str) -> tuple[str, Path]:
    """Return where the pretrained weights of a network come from, ``REPOSITORY/FILE``, and the file.

    It is a ``.safetensors`` file of the Hugging Face hub, downloaded once into its cache (``HF_HOME``).

    Raises:
        UserError: timm has no weights for the network, or they cannot be downloaded.
    """
    config = pretrained_config(name)
    if not config.hf_hub_id:
        raise UserError(
            f"model.weights=imagenet: timm has no pretrained weights for {name}\n"
            "pass a file (model.weights=FILE.safetensors) or start from random weights (model.weights=null)"
        )
    from huggingface_hub import hf_hub_download

    repository, _, revision = config.hf_hub_id.partition("@")
    file = Path(config.hf_hub_filename or "model").with_suffix(".safetensors").name
    source = f"{repository}/{file}"
    try:
        return source, Path(hf_hub_download(repository, file, revision=revision or None, library_name="timm"))
    except Exception as error:  # of the hub, its HTTP client or the system
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise UserError(
            f"model.weights=imagenet: {source} could not be downloaded ({first_line(cause)})\n"
            "download it elsewhere and pass the file (model.weights=FILE.safetensors)\n"
            "or start from random weights (model.weights=null)"
        ) from None


def converted(name: str, state: dict[str, Tensor], heads: tuple[str, ...], origin: str) -> dict[str, Tensor]:
    """Return weights under the names and in the shapes of timm's network, with the head that they were trained with.

    timm converts files of other projects and versions (``checkpoint_filter_fn`` of a model's module).

    Args:
        name: name of the network.
        state: state dict in a file of weights.
        heads: paths of the network's last layers.
        origin: origin of the weights, for the error message.

    Raises:
        UserError: the weights are not those of this network.
    """
    import timm

    given = [len(state[f"{head}.weight"]) for head in heads if f"{head}.weight" in state]
    classes = given[0] if given else pretrained_config(name).num_classes
    # The state takes the place of timm's own file; other entries describe that one.
    overlay = {"state_dict": state, "num_classes": classes, "label_offset": None, "custom_load": False}
    try:
        with torch.random.fork_rng(devices=[]):
            network = timm.create_model(
                name.removeprefix(PREFIX), pretrained=True, num_classes=classes, pretrained_cfg_overlay=overlay
            )
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = [line if len(line) <= 160 else f"{line[:159]}…" for line in lines[1:4]]
        why = why or [f"{type(error).__name__}: {first_line(error)}"]
        raise UserError("\n".join([f"model.weights: {origin} does not fit this network (model.name)", *why])) from None
    found: dict[str, Any] = network.state_dict()
    return found

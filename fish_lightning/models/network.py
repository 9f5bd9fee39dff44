"""The network: any torchvision classification backbone by name, with a last layer for the classes of the data."""

import copy
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models

from fish_lightning.errors import UserError, first_line

#: Where a checkpoint of this project keeps the network's weights.
PREFIX = "network."


def build_network(name: str, num_classes: int, weights: str | None) -> nn.Module:
    """A torchvision backbone that gives (N, num_classes) logits.

    Args:
        name: any name that ``torchvision.list_models(module=torchvision.models)`` gives.
        num_classes: 2 or more.
        weights: ``"imagenet"`` (torchvision's default weights, through torch.hub's cache), the path of a ``.pth``,
            ``.pt``, ``.ckpt`` or ``.safetensors`` file, or None for a random start.

    Returns:
        The network, float32, in training mode.

    Raises:
        UserError: an unknown name, no network and no cached weights, or a file whose weights do not fit.
    """
    if name not in list_models(module=models):
        near = ", ".join(list_models(module=models, include=f"*{name[:4]}*")[:8]) or "resnet18, resnet34, …"
        raise UserError(f"model.name: torchvision has no classification model '{name}'; near it: {near}")
    network = get_model(name, weights=None, num_classes=num_classes)
    if weights is not None:
        state = _imagenet_state(name) if weights == "imagenet" else _file_state(Path(weights))
        _load(network, state, head=_head_keys(name), origin=weights)
    return network


def _head_keys(name: str) -> set[str]:
    """Parameters whose shape depends on the number of classes: the last layer, and an auxiliary head's if any."""
    with torch.device("meta"):
        ten, eleven = (get_model(name, weights=None, num_classes=n).state_dict() for n in (10, 11))
    return {key for key in ten if ten[key].shape != eleven[key].shape}


def _imagenet_state(name: str) -> dict[str, torch.Tensor]:
    weights: Any = get_model_weights(name)["DEFAULT"]  # an enum's alias of its best member
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError) as error:
        raise UserError(f"model.weights=imagenet: {file} is damaged ({first_line(error)})\nremove it") from None
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights=imagenet: {weights.url} could not be downloaded ({getattr(error, 'reason', error)})\n"
            f"1. put that file at {file}, or name a copy: model.weights=FILE.pth\n"
            "2. or start from random weights: model.weights=null"
        ) from None


def _file_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise UserError(
            f"model.weights: no file {path} (seen from {Path.cwd()}); also allowed: imagenet, or null (random start)"
        )
    try:
        if path.suffix == ".safetensors":
            try:
                from safetensors.torch import load_file
            except ImportError:
                raise UserError("model.weights: reading .safetensors needs: pip install safetensors") from None
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch and safetensors raise whatever their parsers meet in a damaged file
        raise UserError(f"model.weights: {path} holds no weights ({first_line(error)})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"model.weights: {path} is not a state dict (names and tensors).")
    return {key.removeprefix(PREFIX): value for key, value in state.items()}


def _load(network: nn.Module, state: dict[str, torch.Tensor], head: set[str], origin: str) -> None:
    """Load ``state``; only a head of another size may differ."""
    own = network.state_dict()
    state = copy.copy(state)
    replaced = {key for key in head & set(state) if state[key].shape != own[key].shape}
    for key in replaced:
        del state[key]
    missing = sorted(set(own) - set(state) - replaced)
    # Auxiliary heads of ImageNet weights (inception, googlenet) may be absent from the network, and only they.
    extra = sorted(key for key in set(state) - set(own) if not key.startswith(("aux", "AuxLogits")))
    shapes = sorted(key for key in set(own) & set(state) if own[key].shape != state[key].shape)
    wrong = [
        f"{what}: {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''} ({len(keys)})"
        for what, keys in (("missing", missing), ("unexpected", extra), ("of another shape", shapes))
        if keys
    ]
    if wrong:
        raise UserError("\n".join([f"model.weights: {origin} does not fit this network (model.name)", *wrong]))
    network.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)

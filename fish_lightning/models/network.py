"""The network: any classification model of torchvision or timm, with a head for the classes of the data."""

import functools
import pickle
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision import models
from torchvision.models import get_model, get_model_weights, list_models

from fish_lightning.errors import UserError, first_line
from fish_lightning.files import sha256_of
from fish_lightning.models import timm_networks
from fish_lightning.models.timm_networks import is_timm
from fish_lightning.names import listed

#: Prefix of the network's weights in a checkpoint of this project.
PREFIX = "network."
#: Prefixes of the auxiliary heads of inception and googlenet, which are not trained.
AUXILIARY = ("aux", "AuxLogits")


def build_network(name: str, num_classes: int, weights: str | None) -> nn.Module:
    """Return a network with (N, num_classes) logits.

    Args:
        name: any of ``torchvision.models.list_models(module=torchvision.models)``, or ``timm/NAME`` with any of
            ``timm.list_models()`` or ``timm.list_pretrained()``.
        num_classes: number of classes, 2 or more.
        weights: ``"imagenet"`` (the default weights of torchvision or timm, cached by torch.hub or the Hugging Face
            hub), the path of a ``.pth``, ``.pt``, ``.ckpt`` or ``.safetensors`` file, or None for random weights. A
            head of another size, or none, is replaced by a new one.

    Returns:
        The network, float32, in training mode.

    Raises:
        UserError: the name is unknown, timm is missing, or the weights cannot be downloaded, read or loaded.
    """
    network = _create(name, num_classes)
    if weights is not None:
        state = _imagenet_state(name) if weights == "imagenet" else _file_state(Path(weights))
        if is_timm(name):
            state = timm_networks.converted(name, state, head_names(name), origin=weights)
        _load(network, state, head=_head_keys(name), origin=weights)
    return network


def normalization(name: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation (of red, green, blue) that the pretrained weights were trained with.

    Raises:
        UserError: see :func:`build_network`.
    """
    if is_timm(name):
        config: Any = timm_networks.pretrained_config(name)
    else:
        _require_torchvision(name)
        config = _published(name).transforms()
    return list(config.mean), list(config.std)


def accepted_size(name: str) -> str:
    """Describe the image sizes that a network accepts, for an error message."""
    if is_timm(name):
        _, height, width = timm_networks.pretrained_config(name).input_size
        return f"this network accepts {height} and {width}"
    return "inception_v3 accepts 299, all others 224"


def weights_record(name: str, weights: str | None) -> dict[str, str | None] | None:
    """Return where the weights that :func:`build_network` has loaded come from; None for random weights.

    Returns:
        ``source`` (a file, an address, or a repository of the Hugging Face hub and its file), ``sha256`` of the file,
        and ``license``, None where the publisher states none.
    """
    if weights is None:
        return None
    source, file, license = _imagenet(name) if weights == "imagenet" else (weights, Path(weights), None)
    return {"source": source, "sha256": sha256_of(file), "license": license}


def _create(name: str, num_classes: int) -> nn.Module:
    if is_timm(name):
        return timm_networks.create_network(name, num_classes)
    _require_torchvision(name)
    network: nn.Module = get_model(name, weights=None, num_classes=num_classes)
    return network


def _require_torchvision(name: str) -> None:
    if name not in list_models(module=models):
        near = ", ".join(list_models(module=models, include=f"*{name[:4]}*")[:8]) or "resnet18, resnet34, …"
        raise UserError(f"model.name: torchvision has no classification model '{name}'; similar: {near}")


def _head_keys(name: str) -> set[str]:
    """Return the parameters whose shape depends on the number of classes, those of auxiliary heads included."""
    with torch.device("meta"):
        ten, eleven = (_create(name, classes).state_dict() for classes in (10, 11))
    return {key for key in ten if ten[key].shape != eleven[key].shape}


@functools.cache
def head_names(name: str) -> tuple[str, ...]:
    """Return the paths of the network's last layers: one, or two for a distilled transformer, which averages them."""
    main = (key for key in _head_keys(name) if not key.startswith(AUXILIARY))
    return tuple(sorted({key.rpartition(".")[0] for key in main}))


def head_name(name: str) -> str:
    """Return the path of the network's last layer, such as ``fc`` for a ResNet."""
    return head_names(name)[0]


def _published(name: str) -> Any:
    return get_model_weights(name)["DEFAULT"]  # an alias of the enum's best member


def _imagenet(name: str) -> tuple[str, Path, str | None]:
    """Return source, file and license of the pretrained weights; for torchvision, the file may not exist yet."""
    if is_timm(name):
        return *timm_networks.pretrained_file(name), timm_networks.pretrained_config(name).license
    url = _published(name).url
    return url, Path(torch.hub.get_dir(), "checkpoints", Path(url).name), None


def _imagenet_state(name: str) -> dict[str, torch.Tensor]:
    source, file, _ = _imagenet(name)
    if is_timm(name):
        return _file_state(file)
    try:
        return dict(_published(name).get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (pickle.UnpicklingError, EOFError, LookupError, ValueError) as error:
        raise UserError(f"model.weights=imagenet: {file} is corrupt ({first_line(error)})\nremove it") from None
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"model.weights=imagenet: {source} could not be downloaded ({getattr(error, 'reason', error)})\n"
            f"save that file as {file}, pass a copy of it (model.weights=FILE.pth)\n"
            "or start from random weights (model.weights=null)"
        ) from None


def _file_state(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        where = f"{path} (working directory: {Path.cwd()})"
        raise UserError(f"model.weights: no file {where}\npass a file, imagenet or null (random weights)")
    load: Any = functools.partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file as load
        except ImportError:
            raise UserError("model.weights: .safetensors files require: pip install safetensors") from None
    try:
        state = load(path)
    except Exception as error:  # corrupt files make the parsers of torch and safetensors raise anything
        raise UserError(f"model.weights: {path} contains no weights ({first_line(error)})") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"model.weights: {path} is not a state dict (names and tensors)")
    if bad := non_finite(state):
        raise UserError(f"model.weights: {path} contains NaN or infinite weights ({bad})")
    return {key.removeprefix(PREFIX): value for key, value in state.items()}


def non_finite(weights: Mapping[str, torch.Tensor]) -> str:
    """Return which weights are NaN or infinite: the first name, and how many others; empty if there are none."""
    names = [name for name, part in weights.items() if part.is_floating_point() and not bool(part.isfinite().all())]
    return listed(names, most=1)


def _load(network: nn.Module, state: dict[str, torch.Tensor], head: set[str], origin: str) -> None:
    """Load ``state``, apart from a head of another size; a head that it lacks stays as it is."""
    own = network.state_dict()
    given = head & state.keys()
    replaced = {key for key in given if state[key].shape != own[key].shape} if given else head
    state = {key: value for key, value in state.items() if key not in replaced}
    wrong = {
        "missing": own.keys() - state.keys() - replaced,
        # The network may lack the auxiliary heads of ImageNet weights (inception, googlenet).
        "unexpected": {key for key in state.keys() - own.keys() if not key.startswith(AUXILIARY)},
        "of another shape": {key for key in own.keys() & state.keys() if own[key].shape != state[key].shape},
    }
    if any(wrong.values()):
        lines = [
            f"{what}: {', '.join(sorted(keys)[:4])}{' …' if len(keys) > 4 else ''} ({len(keys)})"
            for what, keys in wrong.items()
            if keys
        ]
        raise UserError("\n".join([f"model.weights: {origin} does not fit this network (model.name)", *lines]))
    network.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)

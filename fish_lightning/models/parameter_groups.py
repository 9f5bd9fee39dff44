"""Parameter groups of the optimizer: learning rates by depth, and what is not decayed."""

from collections.abc import Iterable
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

#: Settings of the config group ``optimizer`` that are not arguments of an optimizer.
OPTIONS = ("layer_decay", "decay_norms")


def instantiate_optimizer(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments ``optimizer`` and ``parameter_groups`` of ``FishClassifier``.

    Args:
        cfg: the config group ``optimizer``: any optimizer of torch, and the settings ``OPTIONS``.
    """
    arguments = cfg.copy()
    OmegaConf.set_struct(arguments, False)
    options = {name: arguments.pop(name, None) for name in OPTIONS}
    lr = cfg.lr
    return {
        "optimizer": instantiate(arguments),
        "parameter_groups": lambda network: parameter_groups(network, lr, **options),
    }


def parameter_groups(
    network: nn.Module, lr: float, layer_decay: float | None = None, decay_norms: bool | None = True
) -> Iterable[nn.Parameter] | list[dict[str, Any]]:
    """Return what an optimizer takes: parameters, or groups of them.

    Args:
        network: whose parameters are in the order of their depth, as in torchvision's networks.
        lr: learning rate of the last block.
        layer_decay: ratio of the learning rates of neighbouring blocks (see :func:`block_of`); None or 1: one rate.
        decay_norms: whether biases and normalization layers, all parameters of one dimension, are decayed.

    Returns:
        The parameters; with an option, groups with ``params``, ``lr``, ``lr_scale`` (their share of ``lr``), and
        ``weight_decay`` where it is 0.

    Source: Clark et al. 2020 (ELECTRA, arXiv:2003.10555) for layer-wise rates; He et al. 2019 (arXiv:1812.01187) for
    weights without decay.
    """
    if layer_decay in (None, 1) and decay_norms is not False:
        return network.parameters()
    blocks = list(dict.fromkeys(block_of(network, name) for name, _ in network.named_parameters()))
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        scale = (layer_decay or 1.0) ** (len(blocks) - 1 - blocks.index(block_of(network, name)))
        decayed = decay_norms is not False or parameter.dim() > 1
        group = {"params": [], "lr": lr * scale, "lr_scale": scale} | ({} if decayed else {"weight_decay": 0.0})
        groups.setdefault((scale, decayed), group)["params"].append(parameter)
    return list(groups.values())


def block_of(network: nn.Module, name: str) -> str:
    """Return the block that a parameter belongs to: ``layer1.0``, ``features.3``, ``encoder.layers.encoder_layer_0``.

    It is a part of the first ``nn.Sequential`` or ``nn.ModuleList`` on its path, else a direct part of the network.
    """
    parts = name.split(".")
    module = network
    for depth, part in enumerate(parts[:-1]):
        if isinstance(module, nn.Sequential | nn.ModuleList) and module is not network:
            return ".".join(parts[: depth + 1])
        module = getattr(module, part)
    return parts[0]

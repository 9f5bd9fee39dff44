"""Torch's optimizers with layer-wise learning rates, and with parameters that are not decayed."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fish_lightning.errors import UserError


class NetworkParameters(list[nn.Parameter]):
    """The parameters of a network in its order; optimizers of this module also see their names.

    Args:
        network: network whose parameters are listed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network.parameters())
        self.network = network


def _create(
    optimizer: Callable[..., Optimizer],
    parameters: Iterable[nn.Parameter],
    lr: float,
    layer_decay: float | None = None,
    decay_norms: bool = True,
    **arguments: Any,
) -> Optimizer:
    """Create an optimizer, with parameter groups where an option requires them.

    Args:
        optimizer: class of the optimizer.
        parameters: parameters to optimize; :class:`NetworkParameters` for ``layer_decay`` and ``decay_norms``.
        lr: learning rate; with ``layer_decay``, that of the last block.
        layer_decay: ratio of the learning rates of neighboring blocks, see :func:`parameter_groups`.
        decay_norms: whether biases and normalization layers are decayed, see :func:`parameter_groups`.
        **arguments: further arguments of the optimizer.

    Raises:
        UserError: an option requires the network.
    """
    if layer_decay in (None, 1) and decay_norms:
        return optimizer(parameters, lr=lr, **arguments)
    if not isinstance(parameters, NetworkParameters):
        raise UserError("optimizer.layer_decay and optimizer.decay_norms=false require the parameters of a network")
    return optimizer(parameter_groups(parameters.network, lr, layer_decay, decay_norms), lr=lr, **arguments)


Adam = partial(_create, torch.optim.Adam)
AdamW = partial(_create, torch.optim.AdamW)
RMSprop = partial(_create, torch.optim.RMSprop)
SGD = partial(_create, torch.optim.SGD)


def parameter_groups(
    network: nn.Module, lr: float, layer_decay: float | None = None, decay_norms: bool = True
) -> list[dict[str, Any]]:
    """Return groups of parameters for an optimizer.

    Args:
        network: network whose parameters are in the order of their depth, as in torchvision's networks.
        lr: learning rate of the last block.
        layer_decay: ratio of the learning rates of neighboring blocks (see :func:`blocks_of`); None or 1: one rate.
        decay_norms: whether biases and normalization layers, all parameters of one dimension, are decayed.

    Returns:
        Groups with ``params``, ``lr``, ``lr_scale`` (their share of ``lr``), and
        ``weight_decay`` where it is 0.

    Source: Clark et al. 2020 (ELECTRA, arXiv:2003.10555) for layer-wise rates; He et al. 2019 (arXiv:1812.01187) for
    weights without decay.
    """
    block_of = blocks_of(network)
    blocks = list(dict.fromkeys(block_of.values()))
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        scale = (layer_decay or 1.0) ** (len(blocks) - 1 - blocks.index(block_of[name]))
        decayed = decay_norms or parameter.dim() > 1
        group = {"params": [], "lr": lr * scale, "lr_scale": scale} | ({} if decayed else {"weight_decay": 0.0})
        groups.setdefault((scale, decayed), group)["params"].append(parameter)
    return list(groups.values())


def blocks_of(network: nn.Module) -> dict[str, str]:
    """Return the block of each parameter, by name, in the order of depth.

    Blocks are ``layer1.0``, ``features.3``, ``encoder.layers.encoder_layer_0``: parts of the first ``nn.Sequential`` or
    ``nn.ModuleList`` on a parameter's path, else a direct part of the network. Where other blocks are within such a
    part, what comes after them is a block of its own: ``encoder.ln`` of torchvision's vision transformers.
    """
    found: dict[str, str] = {}
    previous = ""
    for name, _ in network.named_parameters():
        block = _block_of(network, name)
        if block != previous and block in found.values():
            block = name.rpartition(".")[0]
        found[name] = previous = block
    return found


def _block_of(network: nn.Module, name: str) -> str:
    parts = name.split(".")
    module = network
    for depth, part in enumerate(parts[:-1]):
        if isinstance(module, nn.Sequential | nn.ModuleList) and module is not network:
            return ".".join(parts[: depth + 1])
        module = getattr(module, part)
    return parts[0]

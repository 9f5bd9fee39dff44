"""Grad-CAM heat maps: which parts of an image are evidence for a class, for any network that computes feature maps.

A heat map is the sum of a stage's channels, each weighted by the mean gradient of the class's logit over its positions,
with negative values set to 0. Source: R. R. Selvaraju et al., Grad-CAM, ICCV 2017, arXiv:1610.02391.

The stage explained is the last one before the final resolution that has enough cells. For 160x240 pixels the final
maps of most backbones are 5x8, too coarse to separate a fish from what lies beside it; the stage before has 10x15. Once
cells are small against the object, still earlier stages gain nothing: their channels stand for edges and textures, and
one weight a channel explains no class. Share of the heat, and of the maxima, on the fish for a ResNet-18 trained on the
sample data at 64x96 pixels (all 216 test images right; fish cover 14 % of the image):

=======  ======  =====  ========
stage    cells   heat   maxima
=======  ======  =====  ========
layer1   16x24   49 %   79 %
layer2   8x12    48 %   82 %
layer3   4x6     31 %   51 %
layer4   2x3     16 %   18 %
=======  ======  =====  ========
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fish_lightning.errors import UserError

#: Coarser stages are explained only if there is no other.
MIN_CELLS = 64


class Stage(NamedTuple):
    """A module that returns a batch of feature maps.

    Attributes:
        name: name of the module within the network.
        height: height of its feature maps.
        width: width of its feature maps.
        channels_last: whether its output is (N, h, w, C), as in Swin transformers, not (N, C, h, w).
    """

    name: str
    height: int
    width: int
    channels_last: bool


def heat_maps(network: nn.Module, images: Tensor, classes: Tensor | None = None) -> npt.NDArray[np.float32]:
    """Return the Grad-CAM heat map of one class for each image of a batch.

    The network keeps its mode, gradients and hooks. Equal arguments give equal maps (on a GPU up to rounding).

    Args:
        network: network that returns logits (N, C) for ``images``; a compiled one runs uncompiled.
        images: (N, 3, H, W) images as ``network`` takes them, on its device.
        classes: (N,) int64, the class to explain for each image; None: the predicted one.

    Returns:
        (N, h, w) heat maps, each divided by its maximum; zeros where no gradient favors the class. :func:`upsampled`
        resizes them to the images.

    Raises:
        UserError: the network has no feature maps (vision transformers).
    """
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # Detached, so that gradients end here, even if all earlier layers are frozen. The next layer gets a clone: it
        # may work in place, which a leaf does not allow.
        kept[:] = [output.detach().requires_grad_()]
        return kept[0].clone()

    with _explainable(network, images):
        images = images.clone()  # tensors created in inference mode cannot be saved for backward
        stage = find_stage(network, images[:1])
        with network.get_submodule(stage.name).register_forward_hook(keep):
            logits = network(images)
        explained = logits.argmax(1) if classes is None else classes.to(logits.device)
        score = logits.gather(1, explained.unsqueeze(1)).sum()
        gradient, maps = torch.autograd.grad(score, kept[0])[0].float(), kept[0].detach().float()
        positions, channels = ((1, 2), 3) if stage.channels_last else ((2, 3), 1)
        heat = (gradient.mean(positions, keepdim=True) * maps).sum(channels).relu()
        heat /= heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
    return np.asarray(heat.cpu())


def upsampled(heat: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Return heat maps (N, h, w) as (N, height, width), bilinearly interpolated, to lay over the images."""
    resized = F.interpolate(torch.from_numpy(heat).unsqueeze(1), (height, width), mode="bilinear", align_corners=False)
    return np.asarray(resized.squeeze(1))


def find_stage(network: nn.Module, image: Tensor) -> Stage:
    """Find the stage to explain: the last with ``MIN_CELLS`` cells and twice as many as the smallest maps.

    If none has ``MIN_CELLS``, the last with twice as many as the smallest maps; if all maps have one size, the last.
    Outputs are compared along the trunk only: the blocks that are called one after another, so that all information
    passes through each. Layers inside a block (shortcuts, squeeze-and-excitation) are not candidates, nor are maps of
    one cell (pooled, or of a tiny image).

    Args:
        network: network in eval mode.
        image: (1, 3, H, W) image as ``network`` takes it.

    Raises:
        UserError: the network has no feature maps, or converts them to tokens.
    """
    shapes = _trunk(network, image)
    name = type(network).__name__
    if any(len(shape) == 3 for shape in shapes.values()):
        raise UserError(
            f"no heat maps for {name}: it computes on tokens, and Grad-CAM needs feature maps\n"
            "choose a convolutional or Swin backbone (model.name)"
        )
    stages = [_stage(name, shape, image) for name, shape in shapes.items() if len(shape) == 4]
    cells = [stage.height * stage.width for stage in stages]
    smallest = min((n for n in cells if n > 1), default=None)
    if smallest is None:
        raise UserError(f"no heat maps for {name}: no feature maps at {image.shape[2]}x{image.shape[3]} pixels (h x w)")
    # Up to the smallest maps: AlexNet and VGG then resize them to a fixed size, which may be larger.
    earlier = [i for i in range(cells.index(smallest)) if cells[i] >= 2 * smallest]
    fine = [i for i in earlier if cells[i] >= MIN_CELLS]
    last = [i for i, n in enumerate(cells) if n == smallest]
    return stages[(fine or earlier or last)[-1]]


def _trunk(network: nn.Module, image: Tensor) -> dict[str, torch.Size]:
    """Return the output shapes of the blocks on the way from image to logits, by name, in the order of the calls."""
    shapes: dict[str, torch.Size] = {}
    modules = dict(network.named_modules())

    def note(name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes.pop(name, None)  # of two calls, the later one counts
            shapes[name] = output.shape

    with ExitStack() as hooks, torch.no_grad():
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_hook(partial(note, name)))
        network(image)

    def is_opened(name: str) -> bool:
        # A container has no computation of its own; what returns logits (N, C) is the network or wraps it.
        return isinstance(modules[name], nn.Sequential | nn.ModuleList) or len(shapes.get(name, ())) == 2

    def is_block(name: str) -> bool:
        parts = name.split(".")
        return not is_opened(name) and all(is_opened(".".join(parts[:i])) for i in range(len(parts)))

    return {name: shape for name, shape in shapes.items() if is_block(name)}


def _stage(name: str, shape: torch.Size, image: Tensor) -> Stage:
    """Describe a 4-d output; its height and width are the neighboring dimensions whose ratio is the image's."""
    _, a, b, c = shape
    ratio = math.log(image.shape[2] / image.shape[3])
    channels_last = abs(math.log(a / b) - ratio) < abs(math.log(b / c) - ratio)
    return Stage(name, a, b, True) if channels_last else Stage(name, b, c, False)


@contextmanager
def _explainable(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Run a network uncompiled, in eval mode and full precision, with gradients; restore its modes afterwards."""
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(images.device.type, enabled=False),
            torch.compiler.set_stance("force_eager"),  # compiled code does not see hooks
        ):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode

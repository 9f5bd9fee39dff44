"""An ensemble as one network, whose checkpoint is read, evaluated and exported as any other."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fish_lightning.data.catalog import Catalog, joined_catalog
from fish_lightning.errors import UserError
from fish_lightning.models.network import PREFIX, build_network, head_name
from fish_lightning.models.tta import mean_log_probabilities
from fish_lightning.names import listed

#: ``hyper_parameters.name`` of an ensemble.
NAME = "ensemble"


class Member(nn.Module):
    """A network that normalizes its images.

    Args:
        name: name of the network.
        num_classes: number of classes, 2 or more.
        mean: (3,) normalization mean, for pixels from 0 to 1.
        std: (3,) normalization standard deviation, for pixels from 0 to 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = build_network(name, num_classes, None)
        self.head = head_name(name)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize images (N, 3, H, W) with pixels from 0 to 1."""
        return (images - self.mean) / self.std

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C) of images (N, 3, H, W) with pixels from 0 to 1."""
        logits: Tensor = self.network(self.normalize(images))
        return logits

    @property
    def last_layer(self) -> nn.Module:
        """The network's last layer."""
        return self.network.get_submodule(self.head)


class EnsembleNetwork(nn.Module):
    """The mean of the probabilities of several networks, which are given the same images.

    Args:
        members: ``name``, ``mean`` and ``std`` of each member.
        num_classes: number of classes, 2 or more.
    """

    def __init__(self, members: Sequence[Mapping[str, Any]], num_classes: int) -> None:
        super().__init__()
        networks = [Member(of["name"], num_classes, of["mean"], of["std"]) for of in members]
        self.members = nn.ModuleList(networks)

    def __iter__(self) -> Iterator[Member]:
        yield from self.members  # type: ignore[misc]

    def forward(self, images: Tensor) -> Tensor:
        """Return logarithms (N, C) of the mean probabilities of images (N, 3, H, W) with pixels from 0 to 1."""
        return mean_log_probabilities([member(images) for member in self])


def joined_checkpoint(members: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the checkpoint of the ensemble of several checkpoints; like them, it is data only.

    Its catalog says which images can be scored, see :func:`fish_lightning.data.catalog.joined_catalog`.

    Args:
        members: well-formed checkpoints, by the names that messages use.

    Raises:
        UserError: there are fewer than two, or they differ in classes, evaluation transform or data set.
    """
    names, checkpoints = list(members), list(members.values())
    if len(names) < 2:
        raise UserError(
            f"runs: an ensemble requires two runs or more, not {listed(names) or 'none'} alone\n"
            "pass the folder of a sweep, or several runs: 'runs=[RUN_A,RUN_B]'"
        )
    arguments = [checkpoint["hyper_parameters"] for checkpoint in checkpoints]
    for name, of in zip(names, arguments, strict=True):
        if of.get("members"):
            raise UserError(f"runs: {name} is an ensemble itself; pass its members")
        _require_same(names[0], arguments[0], name, of)
    states = [checkpoint["FishDataModule"] for checkpoint in checkpoints]
    catalog = joined_catalog([Catalog.from_state(state["catalog"]) for state in states], names)
    precisions = {checkpoint["precision"] for checkpoint in checkpoints}
    return {
        "state_dict": {
            f"{PREFIX}members.{i}.{key}": tensor
            for i, checkpoint in enumerate(checkpoints)
            for key, tensor in checkpoint["state_dict"].items()
        },
        "hyper_parameters": {
            "class_names": list(arguments[0]["class_names"]),
            "name": NAME,
            "weights": None,
            "channels_last": any(of.get("channels_last", True) for of in arguments),
            "mean": [0.0, 0.0, 0.0],  # each member normalizes its images itself
            "std": [1.0, 1.0, 1.0],
            "eval_transform": arguments[0]["eval_transform"],
            "members": [
                {"name": of["name"], "mean": list(of.get("mean", (0.0,) * 3)), "std": list(of.get("std", (1.0,) * 3))}
                for of in arguments
            ],
        },
        "FishDataModule": {
            "catalog": catalog.state(),
            "split": states[0]["split"],
            "next": {"epoch": 0, "batches": 0},
            "seed": states[0]["seed"],
            "batch_size": states[0]["batch_size"],
            "processes": 1,
        },
        "precision": precisions.pop() if len(precisions) == 1 else "32-true",
    }


def _require_same(first: str, one: Mapping[str, Any], name: str, other: Mapping[str, Any]) -> None:
    """Require the same classes and evaluation transform: all members are given the same images."""
    if list(one["class_names"]) != list(other["class_names"]):
        only = [sorted(set(a["class_names"]) - set(b["class_names"])) for a, b in ((one, other), (other, one))]
        raise UserError(
            f"runs: {first} and {name} have different classes\n"
            f"only in {first}: {listed(only[0]) or 'none'}\nonly in {name}: {listed(only[1]) or 'none'}"
        )
    if one["eval_transform"] != other["eval_transform"]:
        raise UserError(
            f"runs: {first} and {name} have different evaluation transforms: {_steps(one)}; {_steps(other)}\n"
            "members are given the same images: train them with the same transforms.eval, height and width"
        )


def _steps(arguments: Mapping[str, Any]) -> str:
    """Return the steps of an evaluation transform, with their sizes."""
    steps = []
    for step in arguments["eval_transform"]["transform"]["transforms"]:
        size = "x".join(str(step[key]) for key in ("height", "width") if key in step)
        steps.append(f"{step['__class_fullname__'].rpartition('.')[2]} {size}".strip())
    return ", ".join(steps)

"""Fine-tuning in stages: the head is trained first, or alone, while the layers before it stay as they are."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fish_lightning.data.datamodule import FishDataModule
from fish_lightning.data.dataset import KeyedBatches
from fish_lightning.errors import UserError
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.network import head_names
from fish_lightning.models.optimizers import blocks_of
from fish_lightning.run_log import say
from fish_lightning.training.mix import Mix
from fish_lightning.training.trainer import callback_of


class Freeze(Callback):
    """Trains the last block of the network first, then one block more every ``every`` epochs, from the end.

    What is trained depends on the epoch alone. The optimizer has all parameters from the start: it skips those without
    a gradient and keeps no state for them, so that a resumed run has nothing to rebuild (Lightning issue 21901).
    Batch normalization of frozen blocks uses its running statistics. For learning rates that differ by block, see
    ``optimizer.layer_decay``.

    Args:
        epochs: number of epochs in which only the head, the last layer, is trained; None: all.
        every: number of epochs from one block to the next; 0: all blocks at once.
        features: whether to compute the input of the head once, from images without augmentation, instead of in each
            epoch; requires ``epochs=None``.
        lr: factors on the scheduled learning rate, by stage: the first holds while only the head is trained, each
            further one from the next unfreezing on, the last one to the end of the run.

    Source: Howard and Ruder 2018 (gradual unfreezing, arXiv:1801.06146).
    """

    def __init__(
        self, epochs: int | None = 1, every: int = 0, features: bool = False, lr: Sequence[float] = (1.0,)
    ) -> None:
        if epochs is not None and epochs < 1:
            raise UserError(f"callbacks.freeze.epochs={epochs}: expected 1 or more, or null")
        if every < 0:
            raise UserError(f"callbacks.freeze.every={every}: expected 0 or more")
        if features and epochs is not None:
            raise UserError("callbacks.freeze.features=true requires callbacks.freeze.epochs=null")
        if not lr or min(lr) <= 0:
            raise UserError(f"callbacks.freeze.lr={list(lr)}: expected factors above 0, one or more")
        self.epochs, self.every, self.features, self.lr = epochs, every, features, lr
        self._table: Tensor | None = None  # (N, D) features of all training and validation images, by index
        self._frozen: list[nn.Parameter] = []
        self._scheduled: list[float] = []  # learning rates during a step, by parameter group

    def trained_blocks(self, epoch: int, blocks: int) -> int:
        """Return how many of the network's blocks, from the end, are trained in an epoch (from 0)."""
        stage = self.stage(epoch)
        return blocks if stage and self.every == 0 else min(blocks, 1 + stage)

    def stage(self, epoch: int) -> int:
        """Return how often blocks have been unfrozen before an epoch (from 0)."""
        if self.epochs is None or epoch < self.epochs:
            return 0
        return 1 if self.every == 0 else 1 + (epoch - self.epochs) // self.every

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Freeze what is never trained before DDP asks which parameters will have gradients."""
        if stage == "fit" and self.epochs is None:
            heads = head_names(pl_module.hparams["name"])
            for name, parameter in pl_module.network.named_parameters():  # type: ignore[union-attr]
                parameter.requires_grad_(_is_of(name, heads))
        if stage == "fit" and self.features:
            trainer.datamodule.augments = False  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the features.

        Raises:
            UserError: training images are also to be mixed.
        """
        if self.features:
            if callback_of(trainer, Mix):
                raise UserError(
                    "freeze=backbone trains on features computed once, so images cannot be mixed\n"
                    "use mix=none, or freeze=head_first"
                )
            say("computing the features of the training and validation images, once")
            self._table = _features(trainer, pl_module)  # type: ignore[arg-type]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Scale the learning rate within each step only: schedules continue from the rate of the step before."""

        def scale(optimizer: Optimizer, *_: Any) -> None:
            factor = self.lr[min(self.stage(trainer.current_epoch), len(self.lr) - 1)]
            self._scheduled = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor

        def restore(optimizer: Optimizer, *_: Any) -> None:
            for group, lr in zip(optimizer.param_groups, self._scheduled, strict=True):
                group["lr"] = lr

        if any(factor != 1 for factor in self.lr):
            for optimizer in trainer.optimizers:
                optimizer.register_step_pre_hook(scale)
                optimizer.register_step_post_hook(restore)

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Give the head its features."""
        if self._table is not None:
            batch["features"] = self._table[batch["index"]]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Freeze what is not trained in this epoch; validation has set the modules to training mode."""
        if self._table is not None:
            batch["features"] = self._table[batch["index"]]
        network = pl_module.network
        assert isinstance(network, nn.Module)
        block_of = _blocks(network, head_names(pl_module.hparams["name"]))
        blocks = list(dict.fromkeys(block_of.values()))
        frozen = set(blocks[: len(blocks) - self.trained_blocks(trainer.current_epoch, len(blocks))])
        # Under DDP what is trained later must have a gradient now; the optimizer does not see it.
        unfreezes = isinstance(trainer.strategy, DDPStrategy) and self.epochs is not None
        self._frozen = []
        for name, parameter in network.named_parameters():
            is_frozen = block_of[name] in frozen
            parameter.requires_grad_(not is_frozen or unfreezes)
            if is_frozen:
                self._frozen.append(parameter)
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                module.train(block_of.get(f"{name}.weight") not in frozen)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Drop the gradients of what is frozen."""
        for parameter in self._frozen:
            parameter.grad = None

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the module as other runs do."""
        pl_module.requires_grad_(True)
        if self.features:
            trainer.datamodule.augments = True  # type: ignore[attr-defined]
        self._table = None


@torch.no_grad()
def _features(trainer: L.Trainer, model: FishClassifier) -> Tensor:
    """Return the (N, D) inputs of the head for training and validation images, 0 for others, on the device."""
    heads = [model.network.get_submodule(head) for head in head_names(model.hparams["name"])]
    if len(heads) > 1 or not isinstance(heads[0], nn.Linear):
        raise UserError(
            f"freeze=backbone requires a single linear head, which {model.hparams['name']} does not have\n"
            "freeze=head_first works with any"
        )
    data: FishDataModule = trainer.datamodule  # type: ignore[attr-defined]
    table: Tensor | None = None
    was_training = model.training
    model.eval()
    for split in ("train", "val"):
        dataset = data.dataset(split)
        for loaded in DataLoader(dataset, batch_sampler=KeyedBatches(len(dataset), data.batch_size), **data.loader):
            batch = data.on_after_batch_transfer(data.transfer_batch_to_device(loaded, model.device, 0), 0)
            with trainer.precision_plugin.forward_context():
                features = model.single_view(batch["image"])[1]
            if table is None:
                table = torch.zeros(len(data.catalog), features.shape[1], device=model.device)
            table[batch["index"]] = features
    assert table is not None
    model.train(was_training)
    return table


def _blocks(network: nn.Module, heads: Iterable[str]) -> dict[str, str]:
    """Return the block of each parameter by depth; the last layers, of which a few networks have two, are the last."""
    blocks = blocks_of(network)
    before = {name: block for name, block in blocks.items() if not _is_of(name, heads)}
    return before | {name: "head" for name in blocks if name not in before}


def _is_of(name: str, modules: Iterable[str]) -> bool:
    return any(name.startswith(f"{module}.") for module in modules)

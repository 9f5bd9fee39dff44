"""A run is a pure function of its config: neither workers nor the cache change a bit of the weights."""

import albumentations as A
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from helpers import same

from fish_lightning.training.progressive import ProgressiveResize


@pytest.fixture(scope="session")
def weights_after(make_data, make_model, tiny_data, tmp_path_factory):
    """``weights_after(**data settings)``: state dict after two epochs with OneCycle and momentum."""
    import lightning as L

    from fish_lightning.models.schedules import onecycle

    def fit(**settings):
        folder = tmp_path_factory.mktemp("exact")
        data = make_data(tiny_data, **({"seed": 5} | settings))
        model = make_model(
            data,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
            scheduler=lambda optimizer, steps: onecycle(optimizer, steps, max_lr=0.01),
        )
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
        )
        trainer.fit(model, datamodule=data)
        assert trainer.global_step > 4
        return model.state_dict()

    return fit


@pytest.fixture(scope="session")
def reference(weights_after):
    return weights_after(num_workers=0)


@pytest.mark.parametrize("workers", [1, 3])
def test_weights_do_not_depend_on_the_number_of_workers(weights_after, reference, workers):
    assert same(weights_after(num_workers=workers), reference)


@pytest.mark.parametrize(("cache", "workers"), [("on", 2), ("ram", 0)])
def test_weights_do_not_depend_on_the_cache(weights_after, reference, cache, workers, tmp_path):
    assert same(weights_after(cache=cache, cache_dir=tmp_path, num_workers=workers), reference)


@pytest.mark.parametrize("way", ["progressive", "device"])
def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_weights(
    make_data, make_model, make_trainer, stop_at, tiny_data, tmp_path, way
):
    train = A.Compose([A.Resize(32, 32), A.Rotate((-35, 35), p=1.0, border_mode=4), ToTensorV2()])
    settings = {"train_transform": train, "cache": "on", "cache_dir": tmp_path, "resident": way == "device"}

    def fit(*callbacks, ckpt=None):
        data = make_data(tiny_data, **settings)
        model = make_model(data)
        grow = [ProgressiveResize(start=0.5, full_from=0.7)] if way == "progressive" else []
        make_trainer(max_epochs=3, limit_val_batches=0, callbacks=[*grow, *callbacks]).fit(
            model, datamodule=data, ckpt_path=ckpt, weights_only=True
        )
        return model.state_dict()

    whole = fit()
    for step in (2, 8):  # in the first and in the second of three epochs
        with pytest.raises(stop_at.error):
            fit(stop_at(step, tmp_path / "last.ckpt"))
        assert same(fit(ckpt=tmp_path / "last.ckpt"), whole), step


def test_another_seed_gives_other_weights(weights_after, reference):
    """So that the tests above could fail."""
    assert not same(weights_after(num_workers=0, seed=6), reference)

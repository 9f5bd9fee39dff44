"""Fine-tuning in stages: what is frozen stays as it is to the last bit, and features are computed once."""

from functools import partial

import lightning as L
import pytest
import torch
from helpers import same

from fish_lightning.errors import UserError
from fish_lightning.models.network import build_network, head_names
from fish_lightning.models.schedules import constant, cosine
from fish_lightning.training.freeze import Freeze, _blocks
from fish_lightning.training.mix import Mix


class Epochs(L.Callback):
    """Records the network at the start of the run and after each epoch."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, pl_module):
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self.states.append({name: part.clone() for name, part in pl_module.network.state_dict().items()})


@pytest.fixture
def frozen(make_data, make_model, make_trainer, tiny_data):
    """``frozen(freeze, epochs)``: the states of the network, the model and its data."""

    def fit(freeze, epochs=2, **model_settings):
        data, watch = make_data(tiny_data), Epochs()
        model = make_model(data, **({"name": "resnet18"} | model_settings))
        make_trainer(max_epochs=epochs, callbacks=[freeze, watch]).fit(model, datamodule=data)
        return watch.states, model, data

    return fit


def changed(one, other):
    """The blocks of which a tensor differs."""
    return {".".join(name.split(".")[:2]) for name in one if not torch.equal(one[name], other[name])}


def test_the_head_is_trained_first_and_then_all_layers(frozen):
    states, model, _ = frozen(Freeze(epochs=1))
    assert changed(states[0], states[1]) == {"fc.weight", "fc.bias"}  # not even running statistics
    assert {"conv1.weight", "bn1.running_mean", "layer1.0", "fc.weight"} <= changed(states[1], states[2])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_blocks_are_unfrozen_from_the_end():
    callback = Freeze(epochs=2, every=2)
    assert [callback.trained_blocks(epoch, 5) for epoch in range(11)] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]
    assert [Freeze(epochs=2).trained_blocks(epoch, 5) for epoch in range(4)] == [1, 1, 5, 5]
    assert [Freeze(epochs=None).trained_blocks(epoch, 5) for epoch in (0, 99)] == [1, 1]


def test_one_block_more_is_trained_each_epoch(frozen):
    states, _, _ = frozen(Freeze(epochs=1, every=1), epochs=3)
    assert changed(states[1], states[2]) == {"fc.weight", "fc.bias", "layer4.1"}
    assert changed(states[2], states[3]) == {"fc.weight", "fc.bias", "layer4.1", "layer4.0"}


def test_each_stage_has_its_own_learning_rate(make_data, make_model, make_trainer, tiny_data):
    used = []

    class Watch(L.Callback):
        def on_train_start(self, trainer, pl_module):
            trainer.optimizers[0].register_step_pre_hook(
                lambda optimizer, *_: used.append((trainer.current_epoch, optimizer.param_groups[0]["lr"]))
            )

    data = make_data(tiny_data)
    model = make_model(data, name="resnet18", scheduler=partial(cosine, eta_min=0.001))
    trainer = make_trainer(max_epochs=4, callbacks=[Freeze(epochs=1, every=1, lr=[10, 2, 1]), Watch()])
    trainer.fit(model, datamodule=data)
    steps, plain = len(used), make_model(data, name="resnet18")
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.003)
    schedule, expected = cosine(optimizer, steps, eta_min=0.001), []
    for epoch, _ in used:
        expected.append(optimizer.param_groups[0]["lr"] * (10, 2, 1, 1)[epoch])
        optimizer.step()
        schedule.step()
    assert {epoch for epoch, _ in used} == {0, 1, 2, 3}
    assert [lr for _, lr in used] == pytest.approx(expected, rel=1e-12)  # the schedule does not see the factors


def test_both_heads_of_a_distilled_transformer_are_trained_first():
    pytest.importorskip("timm", reason="the timm extra is not installed")
    name = "timm/deit_tiny_distilled_patch16_224"
    blocks = _blocks(build_network(name, 3, None), head_names(name))
    assert {key for key, block in blocks.items() if block == "head"} == {
        f"{head}.{part}" for head in ("head", "head_dist") for part in ("weight", "bias")
    }


def test_features_are_computed_once_and_the_head_is_trained_from_them(frozen):
    calls = []

    class Count(Freeze):
        def on_train_start(self, trainer, pl_module):
            pl_module.network.conv1.register_forward_hook(lambda *_: calls.append(1))
            dataset = trainer.train_dataloader.dataset
            assert dataset.transform is trainer.val_dataloaders.dataset.transform  # nor is an image augmented

    # A scheduler asks for the number of steps before the fit begins, which creates the loader.
    states, model, data = frozen(Count(epochs=None, features=True), scheduler=constant)
    assert data.dataset("train", train=True).transform is not data.dataset("val").transform
    assert changed(states[0], states[2]) == {"fc.weight", "fc.bias"}
    assert calls == []  # neither training nor validation computes a convolution
    model.eval()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        logits, features = model.single_view(batch["image"])
        assert torch.allclose(model._logits({**batch, "features": features}), logits)


def test_a_network_without_a_linear_head_has_no_features(frozen):
    with pytest.raises(
        UserError,
        match="requires a single linear head, which squeezenet1_1 does not have\nfreeze=head_first",
    ):
        frozen(Freeze(epochs=None, features=True), name="squeezenet1_1")


def test_images_that_are_not_read_cannot_be_mixed(make_data, make_model, make_trainer, tiny_data):
    data = make_data(tiny_data)
    trainer = make_trainer(max_epochs=1, callbacks=[Freeze(epochs=None, features=True), Mix(1)])
    with pytest.raises(UserError, match="images cannot be mixed\nuse mix=none, or freeze=head_first"):
        trainer.fit(make_model(data, name="resnet18"), datamodule=data)


def test_unreadable_images_have_no_features(make_data, make_model, make_trainer, damaged):
    data = make_data(damaged, on_error="skip")
    model = make_model(data, name="resnet18")
    make_trainer(max_epochs=1, callbacks=[Freeze(epochs=None, features=True)]).fit(model, datamodule=data)
    assert len(model.unreadable) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs=0: expected 1 or more, or null"),
        ({"every": -1}, "every=-1: expected 0 or more"),
        ({"features": True}, "features=true requires callbacks.freeze.epochs=null"),
        ({"lr": []}, "lr=[]: expected factors above 0, one or more"),
        ({"lr": [2, 0]}, "lr=[2, 0]: expected factors above 0, one or more"),
    ],
)
def test_an_impossible_setting_is_an_error(settings, message):
    with pytest.raises(UserError) as raised:
        Freeze(**settings)
    assert message in str(raised.value)


def test_frozen_weights_have_the_initial_values_of_a_run_without_freezing(frozen, make_model):
    states, _, data = frozen(Freeze(epochs=None))
    assert same(
        {name: part for name, part in states[-1].items() if not name.startswith("fc.")},
        {
            name: part
            for name, part in make_model(data, name="resnet18").network.state_dict().items()
            if not name.startswith("fc.")
        },
    )

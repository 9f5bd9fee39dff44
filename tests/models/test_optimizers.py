"""Layer-wise learning rates and weights without decay, as groups of an optimizer."""

import pytest
import torch
from torchvision.models import get_model

from fish_lightning.errors import UserError
from fish_lightning.models.optimizers import SGD, NetworkParameters, blocks_of, parameter_groups
from fish_lightning.models.schedules import onecycle


@pytest.fixture(scope="module")
def resnet():
    return get_model("resnet18", weights=None)


def test_without_options_an_optimizer_gets_the_parameters_themselves(resnet):
    for options in ({}, {"layer_decay": 1.0}, {"layer_decay": None, "decay_norms": True}):
        (group,) = SGD(NetworkParameters(resnet), lr=0.1, **options).param_groups
        assert len(group["params"]) == 62 and "lr_scale" not in group
        assert all(one is other for one, other in zip(group["params"], resnet.parameters(), strict=True))


def test_the_rate_falls_from_block_to_block(resnet):
    groups = parameter_groups(resnet, 0.1, layer_decay=0.5)
    assert [group["lr_scale"] for group in groups] == [0.5**depth for depth in range(10, -1, -1)]
    assert [group["lr"] for group in groups] == pytest.approx([0.1 * 0.5**depth for depth in range(10, -1, -1)])
    assert groups[-1]["params"] == list(resnet.fc.parameters())
    assert sum(len(group["params"]) for group in groups) == len(list(resnet.parameters()))
    assert all("weight_decay" not in group for group in groups)


def test_biases_and_norms_may_be_left_undecayed(resnet):
    decayed, plain = sorted(parameter_groups(resnet, 0.1, decay_norms=False), key=lambda group: "weight_decay" in group)
    assert plain["weight_decay"] == 0 and all(parameter.dim() == 1 for parameter in plain["params"])
    assert all(parameter.dim() > 1 for parameter in decayed["params"])
    assert (len(decayed["params"]), len(plain["params"])) == (21, 41)


@pytest.mark.parametrize(
    ("name", "blocks", "some"),
    [
        ("vit_b_16", 17, "encoder.layers.encoder_layer_3"),
        ("mobilenet_v3_small", 15, "classifier.0"),
        ("densenet121", 11, "features.denseblock2"),
        ("convnext_tiny", 10, "features.7"),
    ],
)
def test_blocks_of_other_networks(name, blocks, some):
    with torch.device("meta"):
        network = get_model(name, weights=None)
    found = list(dict.fromkeys(blocks_of(network).values()))
    assert len(found) == blocks and some in found


def test_the_last_norm_of_a_transformer_comes_after_its_layers():
    with torch.device("meta"):
        network = get_model("vit_b_16", weights=None)
    assert list(dict.fromkeys(blocks_of(network).values()))[-3:] == [
        "encoder.layers.encoder_layer_11",
        "encoder.ln",
        "heads.head",
    ]


def test_onecycle_has_a_peak_for_each_group(resnet):
    optimizer = torch.optim.Adam(parameter_groups(resnet, 0.1, layer_decay=0.5), lr=0.1)
    schedule = onecycle(optimizer, 10, max_lr=0.1, pct_start=0.3)
    peaks = [max(rates) for rates in zip(*[step(optimizer, schedule) for _ in range(9)], strict=True)]
    assert peaks == pytest.approx([0.1 * 0.5**depth for depth in range(10, -1, -1)], rel=1e-3)


def step(optimizer, schedule):
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.step()
    schedule.step()
    return rates


def test_the_options_reach_the_groups_and_not_the_optimizer(resnet):
    optimizer = SGD(NetworkParameters(resnet), lr=0.01, weight_decay=0.1, layer_decay=0.9, decay_norms=False)
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[-1]["lr"] == pytest.approx(0.01)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_options_require_the_names_of_the_parameters(resnet):
    with pytest.raises(UserError, match=r"optimizer\.layer_decay and optimizer\.decay_norms=false require"):
        SGD(resnet.parameters(), lr=0.01, layer_decay=0.9)

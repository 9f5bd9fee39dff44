"""Grad-CAM of networks set by hand, of torchvision's backbones, and against captum."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import get_model

from fish_lightning.errors import UserError
from fish_lightning.evaluation.heatmaps import find_stage, heat_maps, upsampled
from fish_lightning.models.classifier import FishClassifier

#: Backbone, stage at 64x96 pixels (h x w), its height and width.
BACKBONES = [
    ("resnet18", "layer2.1", 8, 12),
    ("squeezenet1_1", "features.7", 7, 11),
    ("mobilenet_v3_small", "features.3", 8, 12),
    ("shufflenet_v2_x0_5", "stage2.3", 8, 12),
    ("densenet121", "features.transition2.conv", 8, 12),
    ("efficientnet_b0", "features.3.1", 8, 12),
    ("convnext_tiny", "features.4.0", 8, 12),
    ("vgg11_bn", "features.20", 8, 12),
    ("googlenet", "inception3b", 8, 12),
    ("regnet_y_400mf", "trunk_output.block2.block2-2", 8, 12),
    ("swin_t", "features.3.1", 8, 12),
]
#: Backbone, stage at 224x224 pixels, its height and width.
LARGER = [
    ("resnet18", "layer3.1", 14),
    ("squeezenet1_1", "features.7", 27),
    ("mobilenet_v3_small", "features.8", 14),
    ("densenet121", "features.transition3.conv", 14),
    ("convnext_tiny", "features.6.0", 14),
    ("alexnet", "features.11", 13),  # 6x6 later, and resized to 6x6
    ("vgg16", "features.29", 14),
    ("resnet50", "layer3.5", 14),
    ("resnext50_32x4d", "layer3.5", 14),
    ("wide_resnet50_2", "layer3.5", 14),
    ("mobilenet_v2", "features.13", 14),
    ("mnasnet0_5", "layers.11.1", 14),
    ("efficientnet_v2_s", "features.5.8", 14),
    ("inception_v3", "Mixed_6e", 12),
    ("maxvit_t", "blocks.2", 14),
    ("swin_v2_t", "features.5.5", 14),
]


def small_network():
    """A random ResNet-18 in which whatever speaks against class 0 speaks for class 1."""
    torch.manual_seed(0)
    return contrasted(get_model("resnet18", weights=None, num_classes=3).eval())


def contrasted(network):
    head = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    with torch.no_grad():
        head.weight[1] = -head.weight[0]
    return network


@pytest.fixture(scope="module")
def resnet():
    return small_network()


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 96, generator=torch.Generator().manual_seed(1))


CLASSES = torch.tensor([0, 2, 1])


@pytest.fixture
def colors():
    """A network whose class 0 is red and class 1 is blue, and an image of a red patch and a blue one."""
    first, second, head = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 2, 2, stride=2, bias=False), nn.Linear(2, 2)
    with torch.no_grad():
        first.weight[:, :, 0, 0] = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0]])
        second.weight[:] = 0.25 * torch.eye(2)[:, :, None, None]
        head.weight[:] = torch.eye(2)
    pool, mean = nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(first, nn.ReLU(inplace=True), pool, second, nn.ReLU(inplace=True), mean, nn.Flatten(), head)
    image = torch.full((1, 3, 64, 64), 0.5)
    image[0, :, 8:24, 40:56] = torch.tensor([1.0, 0, 0])[:, None, None]
    image[0, :, 40:56, 8:24] = torch.tensor([0, 0, 1.0])[:, None, None]
    return network, image


def test_the_heat_lies_where_the_class_is(colors):
    network, image = colors
    heat = heat_maps(network, image.expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert heat.shape == (2, 16, 16) and heat.dtype == np.float32
    red, blue = np.zeros((16, 16)), np.zeros((16, 16))
    red[2:6, 10:14] = blue[10:14, 2:6] = 1
    assert np.array_equal(heat, [red, blue])


def test_a_class_that_nothing_speaks_for_has_no_heat(colors):
    network, image = colors
    assert np.array_equal(heat_maps(network, image.flip(1) * 0, torch.tensor([0])), np.zeros((1, 16, 16)))


@pytest.mark.parametrize(("name", "stage", "height", "width"), BACKBONES)
def test_backbones_are_explained_at_their_last_stage_of_64_cells(name, stage, height, width, images):
    settings = {"init_weights": False} if name == "googlenet" else {}  # its own takes seconds
    network = contrasted(get_model(name, weights=None, num_classes=3, **settings)).eval()
    heat = heat_maps(network, images[:1].expand(2, -1, -1, -1), torch.tensor([0, 1]))
    assert find_stage(network, images[:1])[:3] == (stage, height, width)
    assert heat.shape == (2, height, width) and heat.min() >= 0 and heat.max() == 1 and np.isfinite(heat).all()


@pytest.mark.parametrize(("name", "stage", "height"), LARGER)
def test_larger_images_are_explained_at_the_last_stage_but_one(name, stage, height):
    settings = {"init_weights": False} if name == "inception_v3" else {}
    with torch.device("meta"):  # shapes only
        network, image = get_model(name, weights=None, **settings).eval(), torch.zeros(1, 3, 224, 224)
        assert find_stage(network, image)[:3] == (stage, height, height)


def test_vision_transformers_are_refused():
    with torch.device("meta"):
        network, image = get_model("vit_b_16", weights=None).eval(), torch.zeros(1, 3, 224, 224)
        with pytest.raises(UserError, match=r"^no heat maps for VisionTransformer: it computes on tokens"):
            find_stage(network, image)


def test_a_network_without_feature_maps_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(UserError, match=r"^no heat maps for Sequential: no feature maps at 2x2 pixels"):
        heat_maps(network, torch.rand(1, 3, 2, 2), CLASSES[:1])


@pytest.mark.parametrize(
    ("size", "stage"),
    [
        ((160, 240), "layer3.1"),
        ((128, 128), "layer3.1"),  # 64 cells
        ((112, 112), "layer2.1"),
        ((64, 64), "layer2.1"),
        ((32, 32), "layer1.1"),
        ((20, 20), "relu"),  # the last layer is left with one cell
        ((6, 6), "relu"),  # no stage has 64 cells
    ],
)
def test_the_stage_depends_on_the_size(resnet, size, stage):
    assert find_stage(resnet, torch.rand(1, 3, *size)).name == stage


def test_maps_of_one_size_throughout_are_explained_at_the_last():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert find_stage(network, torch.rand(1, 3, 32, 32))[:3] == ("1", 30, 30)


def test_the_network_is_left_as_it_was(images):
    network = small_network().train()
    network.layer1.eval()
    network.conv1.weight.requires_grad_(False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heat_maps(network, images.clone(), CLASSES)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert {name for name, module in network.named_modules() if not module.training} == {
        name for name, _ in network.named_modules() if name.startswith("layer1")
    }
    assert [name for name, value in network.named_parameters() if value.grad is not None] == ["fc.weight"]
    assert (network.fc.weight.grad == 1).all() and not network.conv1.weight.requires_grad
    assert not any(module._forward_hooks for module in network.modules())


def test_hooks_and_modes_are_restored_after_an_error(images):
    network = small_network().train()
    with pytest.raises((RuntimeError, IndexError)):
        heat_maps(network, images, torch.tensor([0, 1, 99]))
    assert all(module.training and not module._forward_hooks for module in network.modules())


def test_equal_images_have_equal_maps_in_any_batch(resnet, images):
    heat = heat_maps(resnet, images, CLASSES)
    assert np.array_equal(heat, heat_maps(resnet, images, CLASSES))
    with torch.no_grad():
        predicted = resnet.eval()(images).argmax(1)
    assert np.array_equal(heat_maps(resnet, images), heat_maps(resnet, images, predicted))
    alone = heat_maps(resnet, images[1:2], CLASSES[1:2])
    assert alone[0] == pytest.approx(heat[1], abs=1e-4)


def test_the_callers_context_changes_nothing(resnet, images):
    heat = heat_maps(resnet, images, CLASSES)
    with torch.no_grad():
        assert np.array_equal(heat_maps(resnet, images, CLASSES), heat)
    with torch.inference_mode():
        assert np.array_equal(heat_maps(resnet, images * 1, CLASSES), heat)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(heat_maps(resnet, images, CLASSES), heat)


def test_a_frozen_network_is_explained(images):
    network = small_network()
    heat = heat_maps(network, images, CLASSES)
    assert np.array_equal(heat_maps(network.requires_grad_(False), images, CLASSES), heat)


def test_the_memory_layout_changes_rounding_only(images):
    network = small_network()
    heat = heat_maps(network, images, CLASSES)
    network, images = (thing.to(memory_format=torch.channels_last) for thing in (network, images))
    assert heat_maps(network, images, CLASSES) == pytest.approx(heat, abs=1e-3)


def test_a_compiled_network_is_explained(colors):
    network, image = colors
    heat = heat_maps(network, image, CLASSES[:1])
    network.compile(backend="eager")
    with torch.no_grad():
        network(image)  # compiled code does not see hooks
    assert np.array_equal(heat_maps(network, image, CLASSES[:1]), heat)


def test_a_classifier_is_explained_by_the_network_in_it():
    classifier = FishClassifier(["a", "b", "c"], name="resnet18").eval()
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    assert find_stage(classifier, pixels[:1]).name == "network.layer2.1"
    heat = heat_maps(classifier, pixels, CLASSES)
    assert heat == pytest.approx(heat_maps(classifier.network, pixels / 255.0, CLASSES), abs=1e-3)


def test_maps_are_resized_to_images():
    heat = np.zeros((2, 4, 6), np.float32)
    heat[1, 1, 2] = 1
    large = upsampled(heat, 64, 96)
    assert large.shape == (2, 64, 96) and large.dtype == np.float32 and not large[0].any()
    assert np.unravel_index(large[1].argmax(), (64, 96)) == pytest.approx((24, 40), abs=1)


@pytest.mark.parametrize("classes", [[0, 0, 0], [1, 1, 1]])
def test_captum_computes_the_same_maps(resnet, images, classes):
    attr = pytest.importorskip("captum.attr", reason="captum is not installed")
    explained = attr.LayerGradCam(resnet, resnet.layer2)
    theirs = explained.attribute(images, torch.tensor(classes), relu_attributions=True).detach()[:, 0].numpy()
    theirs /= np.maximum(theirs.max((1, 2), keepdims=True), 1e-30)
    ours = heat_maps(resnet, images, torch.tensor(classes))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours.any()

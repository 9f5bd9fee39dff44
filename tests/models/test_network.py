"""The network: any torchvision model with a new head, and weights that are checked before they are loaded."""

import functools
import hashlib
import http.server
import pickle
import socket
import threading
import urllib.error

import pytest
import torch
from helpers import message_of
from safetensors.torch import save_file
from torchvision.models import get_model, get_model_weights

from fish_lightning.errors import UserError
from fish_lightning.models.network import PREFIX, build_network

SMALL = "shufflenet_v2_x0_5"


def state_of(name=SMALL, num_classes=7, seed=11):
    torch.manual_seed(seed)
    return get_model(name, weights=None, num_classes=num_classes).state_dict()


def assert_loaded(network, state, head="fc."):
    """Check that the network has all of ``state`` except the head."""
    own = network.state_dict()
    for key, value in state.items():
        if not key.startswith(head):
            assert torch.equal(own[key], value), key


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch.hub cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch/hub/checkpoints").mkdir(parents=True)
    return tmp_path / "torch/hub/checkpoints"


@pytest.fixture
def imagenet_at(monkeypatch):
    """``imagenet_at(url)`` sets the URL of the small network's weights in torchvision's enum."""

    def point(url):
        enum = get_model_weights(SMALL)
        monkeypatch.setattr(enum.DEFAULT, "_value_", replace_url(enum.DEFAULT.value, url))
        assert enum["DEFAULT"].url == url

    def replace_url(value, url):
        return type(value)(url=url, transforms=value.transforms, meta=value.meta)

    return point


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet34", (64, 96)),
        ("resnet18", (64, 96)),
        ("mobilenet_v3_small", (64, 96)),
        ("efficientnet_b0", (64, 96)),
        ("squeezenet1_1", (64, 96)),
        ("densenet121", (64, 96)),
        ("convnext_tiny", (64, 96)),
        ("vgg11", (64, 96)),
        ("vit_b_32", (224, 224)),
    ],
)
def test_head_of_any_network_has_an_output_per_class(name, size):
    with torch.device("meta"):  # shapes only
        network = build_network(name, 5, None).eval()
        assert network(torch.zeros(2, 3, *size)).shape == (2, 5)
    assert not any(1000 in parameter.shape[:1] for key, parameter in network.named_parameters() if "bias" in key)


def test_network_is_in_training_mode_and_float32():
    network = build_network("resnet34", 9, None)
    assert network.training and {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.fc.out_features == 9
    assert sum(parameter.numel() for parameter in network.parameters()) == 21_289_289  # 21,797,672 with 1,000 classes


def test_random_weights_depend_on_the_seed():
    first, same, other = (torch.manual_seed(seed) and build_network(SMALL, 3, None) for seed in (1, 1, 2))
    assert torch.equal(first.conv1[0].weight, same.conv1[0].weight)
    assert not torch.equal(first.conv1[0].weight, other.conv1[0].weight)


@pytest.mark.parametrize(("name", "similar"), [("resnet35", "resnet34"), ("efficientnet_b9", "efficientnet_b0")])
def test_unknown_name_is_an_error_with_similar_names(name, similar):
    text = message_of(build_network, name, 9, None)
    assert text.startswith(f"model.name: torchvision has no classification model '{name}'") and similar in text


def test_detection_model_is_an_error():
    assert "no classification model" in message_of(build_network, "fasterrcnn_resnet50_fpn", 9, None)


@pytest.mark.parametrize("suffix", ["pth", "pt", "safetensors"])
def test_weights_of_a_file_are_loaded_with_their_head_if_it_fits(tmp_path, suffix):
    state, file = state_of(num_classes=7), tmp_path / f"weights.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    assert_loaded(build_network(SMALL, 7, str(file)), state, head="none")
    assert_loaded(build_network(SMALL, 3, str(file)), state)


@pytest.mark.parametrize(
    ("name", "head"), [("squeezenet1_1", "classifier.1."), ("mobilenet_v3_small", "classifier.3.")]
)
def test_head_of_another_size_is_replaced(tmp_path, name, head):
    torch.save(state_of(name, 20), tmp_path / "weights.pth")
    network = build_network(name, 3, str(tmp_path / "weights.pth"))
    assert_loaded(network, state_of(name, 20), head)
    assert network.state_dict()[f"{head}bias"].shape == (3,)


def test_checkpoint_of_a_run_is_a_file_of_weights(tmp_path):
    state = state_of(num_classes=7)
    torch.save({"state_dict": {f"{PREFIX}{key}": value for key, value in state.items()}}, tmp_path / "best.ckpt")
    assert_loaded(build_network(SMALL, 7, str(tmp_path / "best.ckpt")), state, head="none")


def test_weights_of_another_network_are_an_error_that_names_the_keys(tmp_path):
    torch.save(state_of("squeezenet1_1"), tmp_path / "weights.pth")
    text = message_of(build_network, SMALL, 7, str(tmp_path / "weights.pth"))
    assert text.startswith(f"model.weights: {tmp_path / 'weights.pth'} does not fit this network (model.name)")
    assert "missing: branch" in text or "missing: conv1" in text
    assert "unexpected: classifier.1.bias, classifier.1.weight, features." in text


def test_missing_key_and_wrong_shape_are_named(tmp_path):
    state = state_of()
    del state["conv1.0.weight"]
    state["conv5.0.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    text = message_of(build_network, SMALL, 7, str(tmp_path / "weights.pth"))
    assert "missing: conv1.0.weight (1)" in text and "of another shape: conv5.0.weight (1)" in text


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_that_are_nan_or_infinite_are_an_error(tmp_path, value):
    state = state_of(num_classes=7)
    state["fc.bias"][2] = value
    torch.save(state, tmp_path / "weights.pth")
    text = message_of(build_network, SMALL, 7, str(tmp_path / "weights.pth"))
    assert text == f"model.weights: {tmp_path / 'weights.pth'} contains NaN or infinite weights (fc.bias)"


def test_missing_file_or_one_without_weights_is_an_error(tmp_path):
    text = message_of(build_network, SMALL, 7, str(tmp_path / "none.pth"))
    assert f"model.weights: no file {tmp_path / 'none.pth'}" in text and "imagenet or null" in text
    for name, content in (
        ("text.pth", b"hello"),
        ("text.safetensors", b"hello, this is not a header"),
        ("empty.pth", b""),
        ("empty.safetensors", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert f"model.weights: {tmp_path / name} contains no weights" in message_of(
            build_network, SMALL, 7, str(tmp_path / name)
        )


@pytest.mark.parametrize("content", [[1, 2, 3], {"epoch": 3}, torch.zeros(3), {"state_dict": [1]}, {}])
def test_file_of_other_objects_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    text = message_of(build_network, SMALL, 7, str(tmp_path / "weights.pth"))
    assert "is not a state dict" in text or "does not fit this network" in text


def test_code_in_a_file_of_weights_is_refused_and_not_executed(tmp_path, malice):
    file = tmp_path / "weights.pth"
    torch.save(malice, file)
    assert f"model.weights: {file} contains no weights" in message_of(build_network, SMALL, 7, str(file))
    assert not malice.path.exists()
    torch.load(file, weights_only=False)  # without weights_only it is executed: the test can fail
    assert malice.path.exists()


def test_code_in_a_bare_pickle_is_refused_and_not_executed(tmp_path, malice):
    (tmp_path / "weights.pth").write_bytes(pickle.dumps(malice, protocol=2))
    assert "contains no weights" in message_of(build_network, SMALL, 7, str(tmp_path / "weights.pth"))
    assert not malice.path.exists()


def test_imagenet_weights_are_read_from_the_cache_of_torch_hub(hub):
    state = state_of("resnet18", num_classes=1000)
    torch.save(state, hub / "resnet18-f37072fd.pth")
    network = build_network("resnet18", 9, "imagenet")
    assert_loaded(network, state)
    assert network.fc.weight.shape == (9, 512)


@pytest.mark.parametrize(
    ("name", "file", "head"),
    [
        ("resnet34", "resnet34-b627a593.pth", "fc."),
        ("mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth", "classifier.3."),
    ],
)
def test_each_network_has_its_own_file(hub, name, file, head):
    state = state_of(name, 1000)
    torch.save(state, hub / file)
    assert_loaded(build_network(name, 4, "imagenet"), state, head)


def test_code_in_a_cached_file_is_not_executed(hub, malice):
    torch.save(malice, hub / "resnet18-f37072fd.pth")
    with pytest.raises(UserError):
        build_network("resnet18", 9, "imagenet")
    assert not malice.path.exists()


@pytest.mark.parametrize("content", [b"", b"half a download"])
def test_corrupt_cached_file_is_an_error_that_names_it(hub, content):
    (hub / "resnet18-f37072fd.pth").write_bytes(content)
    assert str(hub / "resnet18-f37072fd.pth") in message_of(build_network, "resnet18", 9, "imagenet")


def test_failed_download_is_a_short_error_with_both_remedies(hub, imagenet_at):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and never listening: a connection is refused
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/small-0a1b2c3d.pth"
        imagenet_at(url)
        text = message_of(build_network, SMALL, 9, "imagenet")
    assert text.startswith(f"model.weights=imagenet: {url} could not be downloaded (")
    assert f"save that file as {hub / 'small-0a1b2c3d.pth'}" in text
    assert "model.weights=FILE.pth" in text and "model.weights=null" in text


def test_failed_name_resolution_is_the_same_error(hub, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    text = message_of(build_network, "resnet34", 9, "imagenet")
    assert "resnet34-b627a593.pth could not be downloaded ([Errno -3] Temporary failure in name resolution)" in text
    assert "model.weights=null" in text


@pytest.fixture
def served(tmp_path):
    """A local web server: (its folder, its address)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_imagenet_weights_are_downloaded_once_and_cached(hub, imagenet_at, served):
    folder, address = served
    torch.save(state_of(num_classes=1000), folder / "draft")
    file = folder / f"small-{hashlib.sha256((folder / 'draft').read_bytes()).hexdigest()[:8]}.pth"
    (folder / "draft").rename(file)
    imagenet_at(f"{address}/{file.name}")
    assert_loaded(build_network(SMALL, 9, "imagenet"), state_of(num_classes=1000))
    assert (hub / file.name).read_bytes() == file.read_bytes()
    file.unlink()  # cached, although no longer on the server
    assert_loaded(build_network(SMALL, 9, "imagenet"), state_of(num_classes=1000))


def test_download_with_another_hash_than_in_its_name_is_an_error(hub, imagenet_at, served):
    folder, address = served
    torch.save(state_of(num_classes=1000), folder / "small-0a1b2c3d.pth")
    imagenet_at(f"{address}/small-0a1b2c3d.pth")
    assert "invalid hash value" in message_of(build_network, SMALL, 9, "imagenet")
    assert not list(hub.iterdir())


def test_file_missing_on_the_server_is_the_same_error(hub, imagenet_at, served):
    imagenet_at(f"{served[1]}/small-0a1b2c3d.pth")
    assert "could not be downloaded (File not found)" in message_of(build_network, SMALL, 9, "imagenet")

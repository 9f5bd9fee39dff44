"""timm's networks do what torchvision's do: head, weights, normalization, features, heat maps, resume, checkpoints."""

import functools
import hashlib
import http.server
import sys
import threading
from functools import partial
from pathlib import Path

import albumentations as A
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from helpers import checkpoint_of, codes, kill, message_of, require_same, summary_of
from safetensors.torch import save_file

from fish_lightning.errors import UserError
from fish_lightning.evaluation.heatmaps import heat_maps
from fish_lightning.models.checkpoint import load_checkpoint, restore
from fish_lightning.models.classifier import FishClassifier
from fish_lightning.models.network import build_network, head_names, weights_record
from fish_lightning.models.optimizers import AdamW, parameter_groups
from fish_lightning.training.freeze import Freeze

timm = pytest.importorskip("timm")

SMALL = "timm/test_resnet"
HALF = [0.5, 0.5, 0.5]  # the normalization of its weights


def refusal(name, weights=None):
    return message_of(build_network, name, 3, weights)


def state_of(name=SMALL, num_classes=1000, seed=11):
    torch.manual_seed(seed)
    return timm.create_model(name.removeprefix("timm/"), num_classes=num_classes).state_dict()


def of_body(network, heads):
    return {key: value for key, value in network.items() if not key.startswith(tuple(f"{head}." for head in heads))}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "heads", "features"),
    [
        ("test_resnet", ("fc",), 96),
        ("test_convnext", ("head.fc",), 64),
        ("test_efficientnet", ("classifier",), 256),
        ("test_vit", ("head",), 64),
        ("deit_tiny_distilled_patch16_224", ("head", "head_dist"), 192),
    ],
)
def test_logits_and_features_come_from_the_last_layer(name, heads, features):
    name = f"timm/{name}"
    assert head_names(name) == heads
    with torch.device("meta"):  # shapes only
        model = FishClassifier(["a", "b", "c"], name, mean=None, std=None).eval()
        size = (224, 224) if "deit" in name else (160, 160)
        logits, found = model.logits_and_features(torch.zeros(2, 3, *size, dtype=torch.uint8))
    assert logits.shape == (2, 3) and found.shape == (2, features)


def test_the_last_layer_computes_the_logits_from_the_features():
    model = FishClassifier(["a", "b", "c"], "timm/test_convnext").eval()
    with torch.no_grad():
        logits, features = model.logits_and_features(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8))
        assert torch.allclose(model.network.head.fc(features), logits, atol=1e-6)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/tmp", ""])
def test_names_that_would_download_or_read_a_model_are_unknown(name):
    assert refusal(f"timm/{name}").startswith(f"model.name: timm has no network '{name.partition('.')[0]}'")


def test_unknown_names_and_tags_are_errors_with_similar_ones():
    text = refusal("timm/resnet19")
    assert text.startswith("model.name: timm has no network 'resnet19'; similar: ") and "resnet18" in text
    text = refusal("timm/resnet18.best")
    assert text.startswith("model.name=timm/resnet18.best: timm has no such weights; it has: ") and "a1_in1k" in text


@pytest.mark.parametrize(("name", "suffix"), [(SMALL, "pth"), ("timm/test_vit", "safetensors")])
def test_weights_of_a_file_are_loaded_with_their_head_if_it_fits(tmp_path, name, suffix):
    state, file = state_of(name), tmp_path / f"weights.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    assert equal(build_network(name, 1000, str(file)).state_dict(), state)
    torch.manual_seed(5)
    replaced = build_network(name, 3, str(file)).state_dict()
    assert equal(of_body(replaced, head_names(name)), of_body(state, head_names(name)))
    torch.manual_seed(5)  # the new head depends on the seed alone
    assert equal(of_body(replaced, ["none"]), build_network(name, 3, str(file)).state_dict())


def test_weights_of_another_network_are_an_error(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(state_of("timm/test_vit"), file)
    text = refusal(SMALL, str(file))
    assert text.startswith(f"model.weights: {file} does not fit this network (model.name)\nMissing key(s)")
    torch.save(state_of(SMALL), file)
    assert "does not fit this network" in refusal("timm/test_convnext", str(file))


def test_weights_without_a_head_are_loaded(tmp_path):
    state = state_of("timm/test_vit", num_classes=0)  # as DINOv2's
    torch.save(state, tmp_path / "weights.pth")
    with pytest.MonkeyPatch.context() as patch:
        config = timm.models.get_pretrained_cfg("test_vit")
        config.num_classes = 0
        patch.setattr("timm.models.get_pretrained_cfg", lambda name: config)
        network = build_network("timm/test_vit", 3, str(tmp_path / "weights.pth")).state_dict()
    assert equal(of_body(network, ["head"]), state) and network["head.weight"].shape == (3, 64)


def cached(home, name=SMALL, file="model.safetensors"):
    """Put weights into a cache of the Hugging Face hub, as a download of timm's would; return the file."""
    repository = timm.models.get_pretrained_cfg(name.removeprefix("timm/")).hf_hub_id
    folder, revision = Path(home, "hub", f"models--{repository.replace('/', '--')}"), "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    stored = folder / "snapshots" / revision / file
    stored.parent.mkdir(parents=True)
    save_file(state_of(name), stored) if file.endswith("safetensors") else torch.save(state_of(name), stored)
    return stored


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_imagenet_weights_come_from_the_cache_of_the_hub_and_their_license_is_recorded(hub):
    file = cached(hub)
    network = build_network(SMALL, 3, "imagenet")
    assert equal(of_body(network.state_dict(), ["fc"]), of_body(state_of(), ["fc"]))
    assert FishClassifier(["a", "b", "c"], SMALL, "imagenet").pretrained == {
        "source": "timm/test_resnet.r160_in1k/model.safetensors",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "license": "apache-2.0",
    }
    assert weights_record(SMALL, None) is None
    assert weights_record(SMALL, str(file))["license"] is None


def test_weights_that_are_not_cached_are_a_short_error_with_both_remedies(hub):
    text = refusal(SMALL, "imagenet")
    source = "timm/test_resnet.r160_in1k/model.safetensors"
    assert text.startswith(f"model.weights=imagenet: {source} could not be downloaded (")
    assert "offline mode" in text and "model.weights=FILE.safetensors" in text and "model.weights=null" in text


def test_pickled_weights_of_the_hub_are_not_loaded(hub):
    cached(hub, file="pytorch_model.bin")
    assert "model.safetensors could not be downloaded" in refusal(SMALL, "imagenet")


def test_a_network_without_published_weights_is_an_error():
    text = refusal("timm/test_mambaout", "imagenet")
    assert text.startswith("model.weights=imagenet: timm has no pretrained weights for timm/test_mambaout")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub on this machine: (its folder, the requests it has answered)."""
    from huggingface_hub import constants

    asked = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(f"{self.command} {self.path}")

        def end_headers(self):
            self.send_header("X-Repo-Commit", "b" * 40)
            self.send_header("ETag", '"weights"')
            super().end_headers()

    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")[2]
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"http://127.0.0.1:{server.server_port}/{{repo_id}}{template}"
    )
    yield folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_imagenet_weights_are_downloaded_once_as_safetensors(served):
    folder, asked = served
    file = folder / "timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(state_of(), file)
    for _ in range(2):
        network = build_network(SMALL, 3, "imagenet").state_dict()
        assert equal(of_body(network, ["fc"]), of_body(state_of(), ["fc"]))
    assert [line for line in asked if line.startswith("GET")] == [f"GET /{file.relative_to(folder)}"]


def test_normalization_is_that_of_the_weights_unless_it_is_given(tmp_path):
    classes = ["a", "b", "c"]
    model = FishClassifier(classes, SMALL, mean=None, std=None)
    assert model.mean.flatten().tolist() == HALF and model.hparams["mean"] == HALF and model.hparams["std"] == HALF
    given = FishClassifier(classes, SMALL, mean=[0.1, 0.2, 0.3], std=None)
    assert given.hparams["mean"] == [0.1, 0.2, 0.3] and given.hparams["std"] == HALF
    imagenet = FishClassifier(classes, "shufflenet_v2_x0_5", mean=None, std=None)
    assert imagenet.hparams["mean"] == [0.485, 0.456, 0.406] and imagenet.hparams["std"] == [0.229, 0.224, 0.225]


def test_heat_maps_show_feature_maps_and_transformers_have_none():
    for name in ("timm/test_convnext", SMALL):
        model = FishClassifier(["a", "b", "c"], name).eval()
        heat = heat_maps(model.network, model.normalize(torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)))
        assert heat.shape == (2, 8, 12) and heat.max() == 1
    with pytest.raises(UserError, match="no heat maps for VisionTransformer"):
        heat_maps(build_network("timm/test_vit", 3, None), torch.zeros(1, 3, 160, 160))


@pytest.mark.parametrize("name", [SMALL, "timm/test_convnext", "timm/test_efficientnet", "timm/test_vit"])
def test_learning_rates_decay_from_the_head_to_the_first_layer(name):
    network = build_network(name, 3, None)
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    rates = {
        names[id(parameter)]: group["lr"]
        for group in parameter_groups(network, 1.0, 0.5)
        for parameter in group["params"]
    }
    assert rates.keys() == dict(network.named_parameters()).keys()
    order = list(rates.values())
    assert order == sorted(order) and len(set(order)) >= 6
    assert rates[f"{head_names(name)[0]}.weight"] == 1


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "levit_128s"])
def test_a_wrong_image_size_is_an_error_that_names_the_right_one(name):
    model = FishClassifier(["a", "b", "c"], f"timm/{name}").eval()
    with pytest.raises(UserError) as error, torch.no_grad():
        model(torch.zeros(1, 3, 160, 240, dtype=torch.uint8))
    assert str(error.value) == (
        f"model.name=timm/{name}: images of 160x240 (h x w) do not fit this network\n"
        "choose other transforms.height and transforms.width (this network accepts 224 and 224)"
    )


@pytest.fixture(scope="module")
def saved(make_folder, make_data, make_model, tmp_path_factory):
    """A checkpoint of a run with timm's network: (model, file)."""
    import lightning as L

    folder = tmp_path_factory.mktemp("timm")
    data = make_data(make_folder(folder / "photos", 3, 4))
    model = make_model(data, name=SMALL, mean=None, std=None, optimizer=partial(AdamW, lr=0.003, layer_decay=0.8))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        use_distributed_sampler=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        **dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False),
    )
    trainer.fit(model, datamodule=data)
    trainer.save_checkpoint(folder / "best.ckpt")
    return model, folder / "best.ckpt"


def test_a_checkpoint_is_data_only_and_restores_network_and_normalization(saved, batch):
    model, file = saved
    assert torch.load(file, weights_only=True)["hyper_parameters"]["mean"] == HALF
    restored, transform = restore(load_checkpoint(file), file)
    assert isinstance(transform, A.Compose) and isinstance(transform.transforms[-1], ToTensorV2)
    assert restored.pretrained is None and restored.mean.flatten().tolist() == HALF
    assert torch.equal(restored(batch["image"]), model.eval()(batch["image"]))


def test_a_checkpoint_that_requires_timm_says_so_where_it_is_missing(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as error:
        load_checkpoint(saved[1])
    assert str(error.value) == f"model.name={SMALL} requires: pip install timm"


def test_a_checkpoint_with_a_name_that_would_download_a_model_is_refused(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    content["hyper_parameters"]["name"] = "timm/hf-hub:someone/something"
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"corrupt or incomplete \(hyper_parameters.name: .*timm has no network"):
        load_checkpoint(tmp_path / "best.ckpt")


@pytest.mark.slow
def test_a_killed_run_resumes_exactly(tmp_path, attempts):
    file = tmp_path / "weights.safetensors"
    save_file(state_of(), file)
    recipe = [f"model.name={SMALL}", f"model.weights={file}", "freeze=head_first", "optimizer.layer_decay=0.9"]
    recipe += ["validate_first=false", "callbacks.last.every_n_steps=2", "tta=flips"]
    killed = [*recipe, kill("on_train_batch_end", 9)]
    done = attempts(tmp_path, ("whole", recipe), ("parts", killed), ("parts", [*recipe, "ckpt=last"]))
    assert codes(done) == [0, -9, 0], [attempt.err for attempt in done]
    require_same(tmp_path / "parts", tmp_path / "whole")
    assert checkpoint_of(tmp_path / "whole", "best.ckpt")["hyper_parameters"]["mean"] == HALF
    summary, digest = summary_of(tmp_path / "whole"), hashlib.sha256(file.read_bytes()).hexdigest()
    assert (summary["model"], summary["weights"]) == (SMALL, str(file))
    assert summary["pretrained"] == {"source": str(file), "sha256": digest, "license": None}


def test_of_distilled_transformers_which_have_two_heads_none_is_trained_alone(
    tiny_data, make_data, make_model, make_trainer
):
    data = make_data(tiny_data)
    model = make_model(data, name="timm/deit_tiny_distilled_patch16_224")
    with pytest.raises(UserError, match="requires a single linear head, which timm/deit_tiny"):
        make_trainer(callbacks=[Freeze(epochs=None, features=True)]).fit(model, datamodule=data)

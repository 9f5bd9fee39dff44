"""A server in this process, on a port of its own."""

import io
import threading

import numpy as np
import pytest
import torch
from helpers import checkpoint_of
from http_client import Client
from hydra import compose, initialize_config_dir
from PIL import Image

from fish_lightning.cli import CONF
from fish_lightning.models.trained import open_model


@pytest.fixture(scope="session")
def picture():
    """``picture(color, seed, size=(24, 32), format="PNG")``: content of an image file."""

    def make(color=(200, 60, 60), seed=0, size=(24, 32), file_format="PNG", **options):
        noise = np.random.default_rng(seed).normal(0, 25, (*size, 3))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(noise + color, 0, 255).astype(np.uint8)).save(buffer, file_format, **options)
        return buffer.getvalue()

    return make


@pytest.fixture(scope="session")
def decided(trained, tmp_path_factory):
    """A checkpoint whose answers differ as much as those of a model that was trained for longer."""
    checkpoint = checkpoint_of(trained.folder, "best.ckpt")
    colors = torch.randint(0, 256, (16, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        logits, _ = open_model(trained.folder).module.logits_and_features(colors.expand(16, 3, 32, 32))
    weight, bias = (checkpoint["state_dict"][f"network.fc.{name}"] for name in ("weight", "bias"))
    scale = 3 / logits.std(0)
    bias.copy_((bias - logits.mean(0)) * scale)
    weight.mul_(scale.unsqueeze(1))
    file = tmp_path_factory.mktemp("decided") / "best.ckpt"
    torch.save(checkpoint, file)
    return file


@pytest.fixture(scope="module")
def serve(trained):
    """``serve("serve.queue=1", …)``: a client of a server of the trained run, which ends with the module."""
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    from fish_lightning.serving.address import listener, server_of
    from fish_lightning.serving.app import app_of

    started = []

    def start(*overrides, ckpt=trained.folder):
        with initialize_config_dir(CONF, version_base="1.3"):
            cfg = compose("serve", [f"ckpt={ckpt}", "trainer.accelerator=cpu", *overrides])
        socket = listener("127.0.0.1", 0)
        listening = socket.__enter__()
        port = listening.getsockname()[1]
        server = server_of(app_of(cfg), cfg.serve.timeout)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        started.append((server, thread, socket))
        return Client(port)

    yield start
    for server, _, _ in started:
        server.should_exit = True
    for _, thread, socket in started:
        thread.join(30)
        assert not thread.is_alive()
        socket.__exit__(None, None, None)


@pytest.fixture(scope="module")
def server(serve):
    """A server with the default settings."""
    return serve()

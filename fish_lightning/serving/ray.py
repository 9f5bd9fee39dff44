"""The same app on Ray Serve: ``serve run fish_lightning.serving.ray:app model=RUN replicas=2``.

Each replica is the whole server, with its own batches; Ray balances requests among the replicas, restarts those that
fail, and ends their work before it stops them. Settings are those of ``conf/serve.yaml``, but for ``host`` and
``port``, which are Ray's own.
"""

from pathlib import Path

from fastapi import FastAPI
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from ray import serve

from fish_lightning.cli import CONF
from fish_lightning.errors import UserError
from fish_lightning.settings.check import require_valid
from fish_lightning.settings.command import as_ckpt


def app(args: dict[str, str]) -> serve.Application:
    """Return the application, which ``serve run`` starts.

    Args:
        args: command-line arguments: settings of ``conf/serve.yaml``, and ``replicas`` (1 unless given).

    Raises:
        UserError: a setting is unknown, missing, or does not follow its rule.
    """
    settings = {"replicas": "1"} | args
    replicas = settings.pop("replicas")
    words = as_ckpt([f"{key}={value}" for key, value in settings.items()])
    if not replicas.isdecimal() or int(replicas) < 1:
        raise UserError(f"replicas={replicas}: expected an integer of at least 1")
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose("serve", ["paths.output=.", *words])
    require_valid(cfg, "serve")
    cfg.ckpt = str(Path(cfg.ckpt).expanduser().absolute())  # replicas have a working folder of their own
    resolved = OmegaConf.to_container(cfg, resolve=True)  # and their processes have not registered our resolvers

    def replica() -> FastAPI:
        from fish_lightning.serving.app import app_of

        return app_of(DictConfig(resolved))

    deployment = serve.deployment(serve.ingress(replica)())
    return deployment.options(
        name="fish_lightning",
        num_replicas=int(replicas),
        max_ongoing_requests=cfg.serve.queue,
        max_queued_requests=cfg.serve.queue,
    ).bind()

"""The app of a config: opens the model, on its device and in its precision. Both ``serve`` and Ray Serve begin here."""

import json
import re
from pathlib import Path

from fastapi import FastAPI
from omegaconf import DictConfig

from fish_lightning.files import run_of
from fish_lightning.models.exported import MODEL_FILE, is_export
from fish_lightning.models.trained import open_model
from fish_lightning.report.predictions import missing_thresholds
from fish_lightning.run_log import say
from fish_lightning.serving.app import build_app
from fish_lightning.serving.limits import Limits
from fish_lightning.serving.metrics import Metrics
from fish_lightning.serving.predictor import Predictor
from fish_lightning.training.trainer import build_trainer


def app_of(cfg: DictConfig) -> FastAPI:
    """Return the app, and say what is not calibrated.

    Args:
        cfg: the composed ``conf/serve.yaml``.

    Raises:
        UserError: there is no such model, or it is corrupt, or this machine does not have its device.
    """
    trained = open_model(cfg.ckpt)
    for line in [trained.note] if trained.note else missing_thresholds(trained.calibration):
        say(line)
    limits, metrics = Limits(**cfg.serve), Metrics()
    predictor = Predictor(
        trained, build_trainer(cfg.trainer, precision=trained.precision), limits, metrics.batch.observe
    )
    return build_app(_name_of(Path(cfg.ckpt).expanduser()), predictor, limits, metrics)


def _name_of(model: Path) -> str:
    """Return a name for the model, fit for a URL: an export's own, as Triton has it, or that of the run's folder."""
    if is_export(model):
        return str(json.loads((model / MODEL_FILE).read_text(encoding="utf-8"))["name"])
    return re.sub(r"[^\w.-]+", "_", run_of(model.absolute()).name, flags=re.ASCII)

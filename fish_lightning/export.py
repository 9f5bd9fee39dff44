"""``python -m fish_lightning.export ckpt=FILE``: write a trained model as one ONNX file, compared with the checkpoint.

Preprocessing is in the graph: decoded images of any size go in, calibrated probabilities come out. Nothing is written
but ``parity.json`` unless the file answers as the checkpoint does, measured from the bytes of the validation images.
"""

from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.errors import UserError
from fish_lightning.settings.command import entry_point


def export(cfg: DictConfig) -> None:
    """Export one checkpoint.

    Args:
        cfg: the composed ``conf/export.yaml``.

    Raises:
        UserError: there is no checkpoint, its images are missing, the graph cannot compute its pipeline or its network,
            a package is missing, or the answers differ by more than ``export.tolerance``.
    """
    from fish_lightning.models.exported import is_export, require_onnx
    from fish_lightning.models.trained import open_model

    require_onnx()
    from fish_lightning.exporting.build import build
    from fish_lightning.exporting.folder import PARITY_FILE, write_export
    from fish_lightning.exporting.tables import export_table, parity_error

    if is_export(cfg.ckpt):
        raise UserError(f"ckpt: {cfg.ckpt} is an export already: pass the checkpoint that it was made from")
    trained = open_model(cfg.ckpt, cfg.tta)
    built, folder = build(trained, cfg), Path(cfg.paths.output)
    write_export(folder, built)
    print(export_table(folder, built))
    if trained.note:
        print(trained.note)
    if not built.parity["passed"]:
        raise UserError(parity_error(built.parity, folder / PARITY_FILE))


main = entry_point("export", export)

if __name__ == "__main__":
    main()

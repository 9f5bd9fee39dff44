"""``python -m fish_lightning.prepare data=fish``: get a data set, check its images, find near-duplicates, report.

Optional: training itself does what is missing. It checks in advance whether the data is sound.
"""

from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.errors import UserError
from fish_lightning.settings.command import entry_point


def prepare(cfg: DictConfig) -> None:
    """Unpack or download what is missing, check it, and write ``data_report.html``.

    Args:
        cfg: the composed ``conf/prepare.yaml``.

    Raises:
        UserError: the data cannot be read; or, after the report, training would fail on it.
    """
    from hydra.utils import instantiate

    from fish_lightning.data import remote
    from fish_lightning.data.catalog import EmptyClassError
    from fish_lightning.data.inspection import inspect
    from fish_lightning.data.near_duplicates.search import with_photographs
    from fish_lightning.data.sources import CatalogSource, SampleSource
    from fish_lightning.data.splits import say_what_training_would
    from fish_lightning.data.unzip import unpack
    from fish_lightning.files import shown
    from fish_lightning.names import printable
    from fish_lightning.report.data_report import data_table, problems, write_data_report

    chosen = instantiate(cfg.data.source)
    if chosen is None:
        raise UserError("there is nothing to prepare for this data: choose data=fish, data=folder or data=sample")
    root = cfg.data.root
    if remote.is_remote(str(root)):
        root = remote.copy_of(root, cfg.data.cache_dir and Path(cfg.data.cache_dir).expanduser())
        remote.fetch(cfg.data.root, root)
    source = chosen(root) if cfg.data.catalog is None else CatalogSource(root, cfg.data.catalog)
    if cfg.data.archive is not None:
        if isinstance(source, SampleSource):
            raise UserError("data.archive requires data=fish, or data=folder data.root=DIR")
        written = unpack(Path(cfg.data.archive).expanduser(), source.root, cfg.data.archive_limit * 1e9)
        print(f"unpacked {written:,} files into {shown(source.root)}", flush=True)
    source.prepare()
    try:
        catalog, empty = source.read(), []
    except EmptyClassError as error:
        catalog, empty = error.catalog, error.names
    catalog = with_photographs(catalog, cfg.data.photograph, cfg.data.find_copies, cfg.data.cache_dir)

    found = inspect(catalog, empty)
    report = Path(cfg.paths.output) / "data_report.html"
    write_data_report(report, found, cfg.report.photographs, cfg.report.pictures)
    size = f"{len(catalog):,} images of {len(catalog.classes)} classes"
    place = printable(str(catalog.root))
    print(f"\n{data_table(found)}\n\ndata    {size} in {place}\nreport  {shown(report)}", flush=True)
    stops = problems(found, skip_unreadable=cfg.data.on_error == "skip")
    try:
        say_what_training_would(catalog, cfg.data.keep_split, tracks=cfg.data.photograph is None)
    except UserError as error:
        stops.append(str(error).splitlines()[0])
    if stops:
        raise UserError(f"training would fail: {', '.join(stops)}\ndetails in the report: {shown(report)}")


main = entry_point("prepare", prepare)

if __name__ == "__main__":
    main()

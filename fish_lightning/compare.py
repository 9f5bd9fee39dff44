"""``python -m fish_lightning.compare a=RUN b=RUN``: is model B better than model A on the same test images?"""

from pathlib import Path

from omegaconf import DictConfig

from fish_lightning.settings.command import entry_point


def compare(cfg: DictConfig) -> float:
    """Compare two runs and write ``compare.json`` and ``compare.html``.

    Args:
        cfg: the composed ``conf/compare.yaml``.

    Returns:
        Difference in accuracy, B - A.

    Raises:
        UserError: a folder without test outputs, or two that cannot be compared.
    """
    from fish_lightning.data.listing import require_folder
    from fish_lightning.evaluation.runs import compare_pair, load_run, match
    from fish_lightning.report.comparison import write_comparison

    if cfg.data.root is not None:
        require_folder(Path(cfg.data.root).expanduser())
    a, b = load_run("a", str(cfg.a)), load_run("b", str(cfg.b))
    pair = match(a, b)
    result = compare_pair(pair, cfg.margin)
    write_comparison(Path(cfg.paths.output), a, b, pair, result, cfg.data.root)
    return float(result["difference"])


main = entry_point("compare", compare)

if __name__ == "__main__":
    main()

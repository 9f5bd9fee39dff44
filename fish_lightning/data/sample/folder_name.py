"""The name of a sample set's folder; imported at every start, so without the libraries that draw one."""


def standard_name(
    seed: int, photographs_per_kind: int, copies: int, shortcut: bool = False, label_errors: float = 0.0
) -> str:
    """Return the name of the folder of a set, as in ``conf/data/sample.yaml``; sets that differ have different ones.

    Args:
        seed: see :func:`fish_lightning.data.sample.generate.make_sample`, and for the others.
        photographs_per_kind: likewise.
        copies: likewise.
        shortcut: likewise.
        label_errors: likewise.
    """
    name = f"sample-{seed}-{photographs_per_kind}x{copies}"
    return name + ("-shortcut" if shortcut else "") + (f"-errors{label_errors:g}" if label_errors else "")

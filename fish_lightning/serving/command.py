"""The command line of a server. It imports nothing, which keeps ``--help`` fast."""

from collections.abc import Sequence


def as_ckpt(words: Sequence[str]) -> list[str]:
    """Return a command line with ``ckpt`` instead of ``model``, which for Hydra is the group of networks."""
    return [f"ckpt={word[len('model=') :]}" if word.startswith("model=") else word for word in words]

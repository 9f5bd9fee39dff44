"""What determines a sample set; imported at every start, so without the libraries that draw one."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """The arguments that determine every byte of a sample set, as in ``conf/data/sample.yaml``.

    Attributes:
        seed: random seed, 0 or more; determines boards, fish and copies.
        photographs_per_kind: number of photographs of each class, 1 or more.
        copies: number of flipped and rotated copies of each photograph, 1 or more.
        shortcut: whether photographs of the training split lie on boards of a color that reveals the class, and those
            of val and test on ordinary ones; the split is then part of the set (column ``split`` of
            ``photographs.csv``).
        label_errors: share of photographs, 0 to 0.5, that are in the folder of another class, with all their copies;
            spread evenly over the classes. ``label_errors.csv`` lists them.
    """

    seed: int = 0
    photographs_per_kind: int = 30
    copies: int = 4
    shortcut: bool = False
    label_errors: float = 0.0

    @property
    def folder(self) -> str:
        """Name of the set's folder; sets that differ have different ones."""
        name = f"sample-{self.seed}-{self.photographs_per_kind}x{self.copies}"
        errors = f"-errors{self.label_errors:g}" if self.label_errors else ""
        return name + ("-shortcut" if self.shortcut else "") + errors

    def arguments(self) -> dict[str, Any]:
        """Return the arguments without switches that are off, as in sets of versions that lack these switches."""
        switches = ("shortcut", "label_errors")
        return {name: value for name, value in asdict(self).items() if value or name not in switches}

"""What the tests of models share."""

import pytest
import torch


class Malice:
    """Pickles as code that creates the file ``path`` when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def malice(tmp_path):
    return Malice(tmp_path / "executed")


@pytest.fixture
def batch():
    """Four images of three classes."""
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return {"image": images, "label": torch.tensor([0, 1, 2, 1]), "index": torch.tensor([10, 11, 12, 13])}

"""A minimal server on LitServe, as its documentation has it: what ``benchmark_serving.py`` compares ours with.

python scripts/serve_litserve.py RUN PORT
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import litserve
import torch
from benchmark_serving import BATCH, Bare
from fastapi import Request


class Minimal(litserve.LitAPI):  # type: ignore[misc]
    """Images to probabilities."""

    def setup(self, device: str) -> None:
        """Open the model, in the worker's process."""
        self.bare = Bare(Path(sys.argv[1]))

    def decode_request(self, request: Request) -> torch.Tensor:
        """Return the image of a form as the model takes it."""
        form: Any = request  # LitServe hands over the parsed form
        image: torch.Tensor = self.bare.decoded(form["files"].file.read())
        return image

    def batch(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return a batch."""
        return torch.stack(list(inputs))

    def predict(self, x: torch.Tensor) -> Any:
        """Return probabilities."""
        return self.bare.compute(x).softmax(1).numpy()

    def unbatch(self, output: Any) -> list[Any]:
        """Return the rows of a batch."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Return JSON."""
        return {"class": self.bare.model.class_names[output.argmax()], "probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Minimal(max_batch_size=BATCH, batch_timeout=0.005), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="error")

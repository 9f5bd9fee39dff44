"""``config.pbtxt``, by which Triton and KServe serve the ONNX file of an export."""

from collections.abc import Mapping
from typing import Any

from fish_lightning.models.exported import FEATURES, IMAGES, LOGITS, PROBABILITIES, UNKNOWN_SCORE

#: Images of equal size that Triton gathers into one batch.
MAX_BATCH = 32


def triton_config(content: Mapping[str, Any]) -> str:
    """Return a Triton model configuration in text format.

    Height and width of the input are open; Triton's dynamic batcher joins requests of equal size. An output of one
    number an image is declared with one dimension that is dropped, since Triton has no outputs without dimensions.

    Args:
        content: of ``model.json``.
    """
    classes = len(content["classes"])
    outputs = "".join(
        f"""
  {{
    name: "{name}"
    data_type: TYPE_FP32
    dims: [ {length} ]{" reshape: { shape: [ ] }" if name == UNKNOWN_SCORE else ""}
  }},"""
        for name, length in ((PROBABILITIES, classes), (LOGITS, classes), (FEATURES, -1), (UNKNOWN_SCORE, 1))
    )
    return f"""name: "{content["name"]}"
backend: "onnxruntime"
max_batch_size: {MAX_BATCH}
input [
  {{
    name: "{IMAGES}"
    data_type: TYPE_UINT8
    dims: [ -1, -1, 3 ]
  }}
]
output [{outputs.rstrip(",")}
]
dynamic_batching {{ }}
version_policy: {{ latest: {{ num_versions: 1 }} }}
"""

"""JSON responses with names that may not be valid UTF-8."""

import json
from typing import Any

from fastapi.responses import JSONResponse


class AsciiJSON(JSONResponse):
    """Escapes what is not ASCII: a class or a file whose name is not UTF-8 has characters that UTF-8 cannot encode."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")

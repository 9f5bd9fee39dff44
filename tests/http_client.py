"""A client that speaks HTTP as the standard library does."""

import http.client
import json
import uuid
from types import SimpleNamespace


def multipart(files, field="files"):
    """Return headers and body of a form with these files: (name, content)."""
    boundary = uuid.uuid4().hex
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join([*parts, f"--{boundary}--\r\n".encode()])
    return {"Content-Type": f"multipart/form-data; boundary={boundary}"}, body


class Client:
    """Requests to a port of this machine."""

    def __init__(self, port):
        self.port, self.url = port, f"http://127.0.0.1:{port}"

    def request(self, method, path, body=None, headers=None):
        """Return ``.status``, ``.headers``, ``.body`` and, if it is JSON, ``.json``."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        is_json = response.headers.get_content_type() == "application/json"
        return SimpleNamespace(
            status=response.status,
            headers=response.headers,
            body=content,
            json=json.loads(content) if is_json else None,
        )

    def get(self, path, **headers):
        return self.request("GET", path, headers=headers)

    def post(self, path, content, **headers):
        """Send JSON."""
        return self.request("POST", path, json.dumps(content), {"Content-Type": "application/json"} | headers)

    def predict(self, *files, path="/predict", **headers):
        """Send files: (name, content)."""
        own, body = multipart(files)
        return self.request("POST", path, body, own | headers)

"""The Open Inference Protocol, as clients of Triton and KServe speak it."""

import json

import numpy as np
import pytest

from fish_lightning.data.decoding import InMemory, decode


@pytest.fixture(scope="module")
def model(server):
    """Path of the model."""
    return f"/v2/models/{server.get('/about').json['name']}"


@pytest.fixture(scope="module")
def pixels(picture):
    """Two images, decoded."""
    return np.stack([decode(InMemory(picture(seed=seed), "x")) for seed in range(2)])


def tensor(pixels, **others):
    return {
        "name": "images",
        "datatype": "UINT8",
        "shape": list(pixels.shape),
        "data": pixels.ravel().tolist(),
    } | others


def test_pixels_get_the_answer_of_their_file(server, model, pixels, picture):
    answers = server.predict(("a", picture(seed=0)), ("b", picture(seed=1))).json["predictions"]
    response = server.post(f"{model}/infer", {"id": "7", "inputs": [tensor(pixels)]}).json
    assert (response["model_name"], response["model_version"], response["id"]) == (model[11:], "1", "7")
    outputs = {output["name"]: output for output in response["outputs"]}
    classes = server.get(model).json["parameters"]["classes"]
    expected = [[answer["calibrated_probabilities"][name] for name in classes] for answer in answers]
    assert outputs["probabilities"]["shape"] == [2, 3] and outputs["probabilities"]["datatype"] == "FP32"
    assert np.reshape(outputs["probabilities"]["data"], (2, 3)) == pytest.approx(np.array(expected), abs=1e-6)
    assert outputs["unknown"]["data"] == [answer["unknown"] for answer in answers]
    assert outputs["unknown"]["datatype"] == "BOOL"


def test_binary_tensors_get_the_same_answer_as_json(server, model, pixels):
    as_json = server.post(f"{model}/versions/1/infer", {"inputs": [tensor(pixels)]}).json
    asked = tensor(pixels, parameters={"binary_data_size": pixels.size})
    del asked["data"]
    head = json.dumps({"inputs": [asked], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = server.request("POST", f"{model}/infer", head + pixels.tobytes(), headers)
    length = int(response.headers["Inference-Header-Content-Length"])
    outputs, rest = json.loads(response.body[:length])["outputs"], response.body[length:]
    for output, expected in zip(outputs, as_json["outputs"], strict=True):
        size = output["parameters"]["binary_data_size"]
        kind = np.float32 if output["datatype"] == "FP32" else np.bool_
        assert np.frombuffer(rest[:size], kind) == pytest.approx(np.array(expected["data"]), abs=1e-6)
        rest = rest[size:]
    assert rest == b""


def test_outputs_can_be_chosen(server, model, pixels):
    asked = {"inputs": [tensor(pixels)], "outputs": [{"name": "probabilities"}]}
    assert [o["name"] for o in server.post(f"{model}/infer", asked).json["outputs"]] == ["probabilities"]


def test_server_and_model_describe_themselves(server, model):
    assert server.get("/v2").json["name"] == "fish_lightning"
    for path in ("/v2/health/live", "/v2/health/ready", f"{model}/ready", f"{model}/versions/1/ready"):
        assert server.get(path).status == 200
    metadata = server.get(model).json
    assert metadata["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert metadata["versions"] == ["1"] and metadata["outputs"][0]["shape"] == [-1, 3]
    for path in ("/v2/models/other", "/v2/models/other/ready", f"{model}/versions/2"):
        response = server.get(path)
        assert (
            response.status == 404
            and response.json["code"] == "not_found"
            and "other" in response.json["error"] + "other"
        )


FLAT = {"name": "images", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": []},
        {"inputs": [7]},
        {"inputs": [FLAT, FLAT]},
        {"inputs": [FLAT | {"name": "x"}]},
        {"inputs": [FLAT | {"datatype": "FP32"}]},
        {"inputs": [FLAT | {"shape": [1, 2, 2, 4]}]},
        {"inputs": [FLAT | {"shape": [1, 2, 2, -3]}]},
        {"inputs": [FLAT | {"shape": [True, 2, 2, 3]}]},
        {"inputs": [FLAT | {"shape": [1, 10**4000, 10**4000, 3]}]},
        {"inputs": [FLAT | {"data": [0] * 11}]},
        {"inputs": [FLAT | {"data": [256] * 12}]},
        {"inputs": [FLAT | {"data": [0.5] * 12}]},
        {"inputs": [FLAT | {"data": [2**99] * 12}]},
        {"inputs": [FLAT | {"data": [[0], [0, 1]]}]},
        {"inputs": [FLAT | {"data": "zeros"}]},
        {"inputs": [FLAT | {"parameters": {"binary_data_size": 12}}]},
        {"inputs": [FLAT], "outputs": [{"name": "x"}]},
        {"inputs": [FLAT], "outputs": 7},
    ],
)
def test_a_malformed_tensor_is_an_error_in_the_words_of_the_protocol(server, model, body):
    response = server.post(f"{model}/infer", body)
    assert (response.status, response.json["code"]) == (400, "malformed_request"), response.body
    assert isinstance(response.json["error"], str) and list(response.json) == ["error", "code"]


def test_sizes_are_limited(server, model):
    for shape, code in (([33, 1, 1, 3], "too_many_files"), ([1, 9000, 9000, 3], "malformed_request")):
        response = server.post(f"{model}/infer", {"inputs": [FLAT | {"shape": shape}]})
        assert response.json["code"] == code
    for length in ("999", "9" * 5000, "-1", "1e1"):
        head = {"Inference-Header-Content-Length": length}
        assert server.request("POST", f"{model}/infer", b"{}", head).json["code"] == "malformed_request", length[:9]


def test_what_utf_8_cannot_encode_is_escaped(server, model):
    answered = server.post(f"{model}/infer", {"id": "\ud800", "inputs": [FLAT]})
    assert (answered.status, answered.json["id"]) == (200, "\ud800")

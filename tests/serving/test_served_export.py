"""An export is served as its checkpoint is, pictures of several sizes in one request too."""

import pytest
from http_client import multipart

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


@pytest.fixture(scope="module")
def export(tmp_path_factory, run, trained):
    """The folder of an export of the trained run."""
    cwd = tmp_path_factory.mktemp("export")
    done = run("export", f"ckpt={trained.folder}", "hydra.run.dir=exported", "name=fish", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd / "exported"


def test_an_export_answers_as_its_checkpoint(serve, export, picture):
    files = [(f"{size[0]}.png", picture(seed=size[0], size=size)) for size in ((24, 32), (60, 41), (24, 32))]
    headers, body = multipart(files)
    exact, exported = serve("trainer.precision=32-true"), serve(ckpt=export)
    answers = [client.request("POST", "/predict", body, headers).json["predictions"] for client in (exact, exported)]
    assert [answer["file"] for answer in answers[1]] == [name for name, _ in files]
    for one, other in zip(*answers, strict=True):
        assert one["class"] == other["class"] and one["unknown"] == other["unknown"]
        assert other["probabilities"] == pytest.approx(one["probabilities"], abs=1e-4)
    assert exported.get("/v2/models/fish").status == 200  # the name of the repository, as Triton has it

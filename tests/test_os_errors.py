"""What the operating system refuses, and how a program ends early: one to five lines, in a program of its own."""

import os
import resource
import shutil
import subprocess
import sys

import pytest
from helpers import REPOSITORY, is_short_error

from fish_lightning import errors
from fish_lightning.errors import UserError

#: Presses Ctrl-C when a module is imported.
CTRL_C = """
import signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "omegaconf":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


def program(cwd, name, *words, **settings):
    """Run a program that reads no images: it imports Hydra only."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | settings.pop("env", {})
    command = [sys.executable, "-m", f"fish_lightning.{name}", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, **settings)


def no_room(cwd):
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}


def deleted(cwd):
    return {"preexec_fn": lambda: shutil.rmtree(cwd)}


def a_file(cwd):
    (cwd / "logs").write_text("")
    return {}


def read_only(cwd):
    if os.geteuid() == 0:
        (cwd / "logs").symlink_to("/sys")  # where not even root can write
    else:
        cwd.chmod(0o500)
    return {}


def name_too_long(cwd):
    return {"words": [f"paths.logs={'x' * 300}"]}


@pytest.mark.parametrize(
    ("situation", "words"),
    [
        (read_only, ["check its permissions, or write elsewhere: paths.logs=FOLDER"]),
        (no_room, ["File too large", "free disk space"]),
        (deleted, ["the working directory cannot be read", "start from another"]),
        (a_file, ["a file exists where a folder is expected"]),
        (name_too_long, ["File name too long", "choose a shorter name"]),
    ],
)
@pytest.mark.parametrize(("name", "given"), [("train", []), ("compare", ["a=x", "b=y"])])
def test_what_the_system_refuses_is_told_before_the_job_begins(tmp_path, name, given, situation, words):
    cwd = tmp_path / "here"
    cwd.mkdir()
    settings = situation(cwd)
    assert is_short_error(program(cwd, name, *given, *settings.pop("words", []), **settings), *words)


def test_a_question_in_a_deleted_folder_is_a_short_error(tmp_path):
    (tmp_path / "here").mkdir()
    assert is_short_error(program(tmp_path / "here", "train", "--help", **deleted(tmp_path / "here")), "start from")


def piped(code):
    """Run code whose output nobody reads."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(code, stdout=writer, stderr=subprocess.PIPE, env=environment, text=True, check=False)
    os.close(writer)
    return done


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "fish_lightning.train", "--help"],
        ["-m", "fish_lightning.predict", "--cfg", "job"],
        ["-c", "from fish_lightning.errors import program\nwith program(): print('fits the buffer')"],
        [
            "-c",
            "from fish_lightning.errors import program, shown_without_traceback\n"
            "with program(): shown_without_traceback(lambda: print('x' * 100_000))()",
        ],
    ],
)
def test_a_closed_pipe_ends_a_program_silently(command):
    done = piped([sys.executable, *command])
    assert (done.returncode, done.stderr) == (141, "")


def test_what_the_encoding_cannot_show_is_escaped(tmp_path):
    code = "from fish_lightning.errors import program\nwith program(): print('Dörsch → \\udcff')"
    for encoding in ("ascii", "latin-1", "utf-8"):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"rsch" in done.stdout and b"\\udcff" in done.stdout


def test_ctrl_c_during_imports_is_one_word(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(CTRL_C)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = program(tmp_path, "train", env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")


def test_importing_the_package_leaves_ctrl_c_to_its_user():
    code = (
        "import signal; before = signal.getsignal(signal.SIGINT)\n"
        "import fish_lightning; assert signal.getsignal(signal.SIGINT) is before"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def told(error, monkeypatch, capsys, full="0"):
    monkeypatch.setenv("HYDRA_FULL_ERROR", full)
    with pytest.raises(SystemExit) as left, errors.program():
        raise error
    assert left.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("number", errors.REFUSALS)
def test_each_refusal_has_two_lines_that_name_the_file(number, monkeypatch, capsys):
    said = told(OSError(number, os.strerror(number), "photos/1.png"), monkeypatch, capsys)
    assert said.count("\n") == 2 and "photos/1.png" in said and os.strerror(number) in said


@pytest.mark.parametrize("error", [OSError(0, "?"), ConnectionResetError(), FileNotFoundError("no errno"), KeyError()])
def test_another_error_is_a_bug(error):
    with pytest.raises(type(error)), errors.program():
        raise error


def test_with_hydras_variable_a_refusal_shows_where(monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(PermissionError), errors.program():
        raise PermissionError(13, "Permission denied", "x")
    assert told(UserError("known"), monkeypatch, capsys, full="1") == "error: known\n"


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "nope.Spy"}, "callbacks.spy._target_=nope.Spy: No module named 'nope'"),
        ({"_target_": "fish_lightning.callbacks.Spy"}, "No module named 'fish_lightning.callbacks'"),
        ({"_target_": "fractions.Nope"}, "callbacks.spy._target_=fractions.Nope: "),
        (
            {"_target_": "albumentations.GaussNoise", "p": 7},
            "callbacks.spy._target_=albumentations.augmentations.pixel.transforms.GaussNoise: ",
        ),
        ({"_target_": "fractions.Fraction", "x": 1}, "unexpected keyword argument 'x'"),
    ],
)
def test_a_users_own_target_that_fails_is_told_in_words(node, said, monkeypatch, capsys):
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    with pytest.raises(Exception) as failed:
        instantiate(OmegaConf.create({"callbacks": {"spy": node}}).callbacks.spy)
    message = told(failed.value, monkeypatch, capsys)
    assert said in message and message.count("\n") <= 5 and "Traceback" not in message


def test_a_target_of_ours_that_fails_is_a_bug():
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    node = OmegaConf.create({"_target_": "fish_lightning.files.byte_size", "count": "x"})
    with pytest.raises(InstantiationException), errors.program():
        instantiate(node)

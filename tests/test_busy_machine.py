"""On busy cores several threads wait for one another: the start says what to set."""

import os

import pytest
import torch

from fish_lightning import hardware


@pytest.mark.parametrize(
    ("load", "threads", "accelerator", "noted"),
    [
        (2.0, 2, "cpu", True),
        (6.0, 2, "cpu", True),
        (0.4, 2, "cpu", False),
        (6.0, 1, "cpu", False),
        (6.0, 2, "mps", False),
    ],
)
def test_the_note_says_what_to_set(monkeypatch, load, threads, accelerator, noted):
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    note = hardware.busy_note(accelerator)
    assert bool(note) == noted
    assert not note or ("set OMP_NUM_THREADS=1" in note and "\n" not in note)

"""Defaults for the machine."""

import os

import pytest
import torch

from fish_lightning import hardware


@pytest.mark.parametrize(
    ("accelerator", "cuda", "cores", "cache", "workers"),
    [
        ("cpu", True, 2, "on", 0),
        ("cpu", False, 2, "off", 1),
        ("auto", False, 16, "ram", 2),
        ("gpu", True, 2, "on", 2),
        ("auto", True, 64, "off", 8),
        ("mps", False, 4, "on", 4),
    ],
)
def test_workers_are_many_for_a_gpu_and_few_on_a_cpu(monkeypatch, accelerator, cuda, cores, cache, workers):
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert hardware.default_workers(accelerator, cache) == workers


@pytest.mark.parametrize(
    ("accelerator", "capability", "precision"), [("gpu", (9, 0), "bf16-mixed"), ("auto", (7, 5), "32-true")]
)
def test_bf16_is_for_gpus_with_native_support(monkeypatch, accelerator, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert hardware.fastest_precision(accelerator) == precision


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

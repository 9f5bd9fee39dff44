"""Defaults that suit the machine."""

import pytest
import torch

from fish_lightning import hardware


@pytest.mark.parametrize(
    ("accelerator", "cuda", "cores", "workers"),
    [("cpu", True, 2, 1), ("auto", False, 16, 2), ("gpu", True, 2, 2), ("auto", True, 64, 8), ("mps", False, 4, 4)],
)
def test_workers_are_many_for_a_gpu_and_few_beside_the_cpus_arithmetic(monkeypatch, accelerator, cuda, cores, workers):
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert hardware.default_workers(accelerator) == workers


@pytest.mark.parametrize(("setting", "cores", "threads"), [(None, 8, [7]), (None, 1, [1]), ("3", 8, [])])
def test_one_core_is_left_to_the_loader_unless_the_user_says_otherwise(monkeypatch, setting, cores, threads):
    chosen = []
    monkeypatch.setattr(hardware, "cores", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if setting:
        monkeypatch.setenv("OMP_NUM_THREADS", setting)
    hardware.leave_a_core_to_the_loader()
    assert chosen == threads


@pytest.mark.parametrize(
    ("accelerator", "capability", "precision"), [("gpu", (9, 0), "bf16-mixed"), ("auto", (7, 5), "32-true")]
)
def test_bf16_is_for_gpus_that_compute_it(monkeypatch, accelerator, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert hardware.fastest_precision(accelerator) == precision

"""What a step draws at random depends on seed, epoch, batch and process only."""

from types import SimpleNamespace

import torch

from fish_lightning.resume.step_seeds import StepSeeds


def draw(seed=1, epoch=2, batch=3, rank=0, before=0):
    torch.manual_seed(before)
    trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
    StepSeeds(seed).on_train_batch_start(trainer, None, None, batch)
    return torch.rand(1).item()


def test_the_same_step_draws_the_same_whatever_was_drawn_before():
    assert draw() == draw(before=99)


def test_another_seed_epoch_batch_or_process_draws_something_else():
    drawn = [draw(), draw(seed=2), draw(epoch=3), draw(batch=4), draw(rank=1), draw(epoch=3, batch=2)]
    assert len(set(drawn)) == len(drawn)

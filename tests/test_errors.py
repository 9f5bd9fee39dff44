"""What a user is shown when something cannot be done."""

import pytest

from fish_lightning.errors import UserError, first_line, shown_without_traceback


def shown(error, capsys):
    @shown_without_traceback
    def task():
        raise error

    with pytest.raises(SystemExit) as left:
        task()
    return left.value.code, capsys.readouterr().err


def test_a_users_error_is_shown_with_exit_code_1(capsys):
    assert shown(UserError("no folder x\npass another"), capsys) == (1, "error: no folder x\npass another\n")


def test_a_workers_traceback_is_cut_to_its_message(capsys):
    wrapped = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
        "fish_lightning.errors.UserError: a.png: an empty file\nrepair or remove it\n"
    )
    assert shown(UserError(wrapped), capsys) == (1, "error: a.png: an empty file\nrepair or remove it\n")


def test_an_error_that_hydra_has_wrapped_is_shown_as_it_is(capsys):
    wrapper = RuntimeError("Error in call to target")
    wrapper.__cause__ = UserError("no such weights")
    assert shown(wrapper, capsys) == (1, "error: no such weights\n")


def test_a_bug_of_ours_keeps_its_traceback():
    @shown_without_traceback
    def task():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        task()


def test_ctrl_c_outside_training_ends_with_130(capsys):
    assert shown(KeyboardInterrupt(), capsys) == (130, "stopped\n")


def test_a_librarys_message_is_one_short_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(EOFError()) == "EOFError"
    assert len(first_line(ValueError("x" * 500))) == 120

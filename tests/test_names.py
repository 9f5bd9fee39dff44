"""Names of any bytes can be shown anywhere."""

from io import BytesIO

import pytest

from fish_lightning.names import aligned, figure_text, path_cell, printable, text_cell


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Gilt-Head Bream ünï", "Gilt-Head Bream ünï"),
        ("a\x1b[31mred", r"a\x1b[31mred"),
        ("line\nbreak", r"line\nbreak"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\xe9"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_no_terminal_shows_is_escaped(name, shown):
    assert printable(name) == shown
    shown.encode("utf-8")


def test_dollars_are_no_mathematics():
    from matplotlib.figure import Figure

    figure, picture = Figure(), BytesIO()
    figure.subplots().set_title(figure_text("cost $x_$ $5_$6"))
    figure.savefig(picture, format="png")  # raises where "$x_$" is parsed
    assert picture.getvalue().startswith(b"\x89PNG")


def test_a_spreadsheet_sees_no_formula():
    assert path_cell("=cmd.png") == "./=cmd.png" and path_cell("fish/a.png") == "fish/a.png"
    assert text_cell("=1+1") == "'=1+1" and text_cell("Trout") == "Trout"


def test_columns_of_a_table_line_up_whatever_is_in_them():
    assert aligned([("a", "10", "x"), ("{long}", "2", "")], right=(1,)) == ["a       10  x", "{long}   2"]

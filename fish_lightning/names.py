"""How names of files and classes are shown, whatever bytes they consist of: in a terminal, a spreadsheet, a figure.

File names are bytes on POSIX. Python maps bytes that are not UTF-8 to lone surrogates (PEP 383), which no terminal,
JSON reader or font accepts. Files that are read again (``split.csv``) keep them with ``errors=ENCODE_ERRORS``.
"""

from collections.abc import Collection, Sequence

#: How text files are opened that must keep names exactly.
ENCODE_ERRORS = "surrogateescape"
#: What a spreadsheet takes as the start of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
#: Characters of a name in a figure or a table.
LONGEST = 24


def printable(name: str) -> str:
    r"""Return a name without control characters and lone surrogates, which are written as escapes such as ``\x1b``."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else _escape(c) for c in name)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(name: str) -> str:
    """Return a name of at most ``LONGEST`` characters."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"


def printable_lines(text: str) -> str:
    """Return a text of several lines, each as :func:`printable` returns it."""
    return "\n".join(map(printable, text.split("\n")))


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names as a message shows them: the first ``most``, and how many others there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def aligned(lines: Sequence[Sequence[str]], right: Collection[int]) -> list[str]:
    """Return the lines of a table whose columns are aligned.

    Args:
        lines: cells of each line.
        right: indices of the columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    form = "  ".join(f"{{:{'>' if column in right else '<'}{width}}}" for column, width in enumerate(widths))
    return [form.format(*line).rstrip() for line in lines]


def figure_text(text: str, lines: bool = False) -> str:
    """Return a text for matplotlib, which would set what is between dollar signs as mathematics.

    Args:
        text: names, or several lines with names in them.
        lines: whether to keep line breaks.
    """
    shown = printable_lines(text) if lines else printable(text)
    return shown.replace("$", r"\$")


def path_cell(path: str) -> str:
    """Return a path for a table that may be opened in a spreadsheet: never a formula, and still the same file."""
    return f"./{path}" if path.startswith(_FORMULA) else path


def text_cell(text: str) -> str:
    """Return a text for a table that may be opened in a spreadsheet, where an apostrophe marks it as text."""
    return f"'{text}" if text.startswith(_FORMULA) else text

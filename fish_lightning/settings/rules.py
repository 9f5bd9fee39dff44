"""Rules: what one value may be, and the words for it in an error. Settings and checkpoints are described by them."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Rule:
    """The values that one setting may have.

    Attributes:
        words: the alternatives, as they follow "expected".
        accepts: function that returns whether a value, its interpolations resolved, is one of them.
        example: placeholder for a value that is missing (``ckpt=FILE``).
    """

    words: tuple[str, ...]
    accepts: Callable[[Any], bool]
    example: str = "VALUE"

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(self.words + other.words, lambda v: self.accepts(v) or other.accepts(v), self.example)

    def __str__(self) -> str:
        return join_words(self.words, "or")


@dataclass(frozen=True)
class Component:
    """What Hydra instantiates: a mapping with ``_target_``.

    The arguments of the targets in ``TARGETS`` are known. Another target is a user's own and takes any.

    Attributes:
        keys: arguments that every target has.
        other: rule for what may stand in its place.
        complete: whether none of ``keys`` may be missing.
    """

    keys: "Mapping[str, Schema]"
    other: Rule | None = None
    complete: bool = False

    def __str__(self) -> str:
        words = self.other.words if self.other else ()
        return join_words(words if words and words != NULL.words else ("a mapping with _target_", *words), "or")


@dataclass(frozen=True)
class Each:
    """A mapping of names that the user chooses, or a list; ``item`` is the schema of what is in it."""

    item: "Schema"
    container: type[dict[Any, Any]] | type[list[Any]]
    other: Rule | None = None

    def __str__(self) -> str:
        container = "a list" if self.container is list else "a mapping of names"
        return join_words([container, *(self.other.words if self.other else ())], "or")


Schema: TypeAlias = "Rule | Component | Each | Mapping[str, Schema]"


def join_words(words: Sequence[str], conjunction: str) -> str:
    """Return words as in "a, b or c"."""
    *first, last = words
    return f"{', '.join(first)} {conjunction} {last}" if first else last


def as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line, shortened."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        shown = f"[{','.join(map(as_typed, value))}]"
    elif isinstance(value, dict):
        shown = f"{{{','.join(f'{key!s}:{as_typed(part)}' for key, part in value.items())}}}"
    else:
        shown = str(value) if str(value).isprintable() else ascii(value)
        if isinstance(value, str) and re.fullmatch(r"|true|false|null|nan|[-+]?(inf|\.?\d[\d._]*(e[-+]?\d+)?)", value):
            shown = f"'{value}'"
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def number(interval: str = "(-inf, inf)", noun: str = "a number", of: type = float) -> Rule:
    """Return a rule for finite numbers; booleans and quoted numbers are not numbers.

    Args:
        interval: interval in mathematical notation, such as ``"[0, 1)"``.
        noun: noun for the value in error messages.
        of: type of the numbers: float (integers are accepted too) or int.
    """
    low, high = map(float, interval[1:-1].split(","))
    is_above = operator.gt if interval[0] == "(" else operator.ge
    is_below = operator.lt if interval[-1] == ")" else operator.le
    if math.isfinite(high):
        noun += f" in {interval}"
    elif math.isfinite(low):
        noun += f" above {low:g}" if interval[0] == "(" else f" of at least {low:g}"
    types = (int,) if of is int else (int, float)
    return Rule((noun,), lambda v: type(v) in types and math.isfinite(v) and is_above(v, low) and is_below(v, high))


def integer(interval: str) -> Rule:
    """Return a rule for integers."""
    return number(interval, "an integer", int)


def share(interval: str) -> Rule:
    """Return a rule for shares: 1.0 is all, and the integer 1 is one of them."""
    rule = number(interval, "a share")
    return Rule(rule.words, lambda v: isinstance(v, float) and rule.accepts(v))


def choice(*options: str | int | None) -> Rule:
    """Return a rule for one of a few values."""
    return Rule(tuple(map(as_typed, options)), lambda v: any(type(v) is type(o) and v == o for o in options))


def several(count: int, of: Rule, words: str) -> Rule:
    """Return a rule for lists of ``count`` values."""
    return Rule((words,), lambda v: isinstance(v, list) and len(v) == count and all(map(of.accepts, v)))


def text(*words: str, example: str = "VALUE") -> Rule:
    """Return a rule for text that is not empty."""
    return Rule(words, lambda v: isinstance(v, str) and v.strip() != "", example)


def matching(pattern: str, *words: str) -> Rule:
    """Return a rule for text that a regular expression matches as a whole."""
    return Rule(words, lambda v: isinstance(v, str) and re.fullmatch(pattern, v) is not None)


ANYTHING = Rule(("anything",), lambda v: True)
NULL = choice(None)
FLAG = choice(True, False)
TEXT = text("text")
PROBABILITY = number("[0, 1]")
COUNT = integer("[1, inf)")
NON_NEGATIVE = integer("[0, inf)")
SEED = integer("[0, 4294967295]")  # 32 bits: what numpy takes
SIZE = integer("[1, 10000]")  # pixels
TTA = choice("flips", "turns", None)
MODEL_NAME = matching(r"(?a)\w[\w-]*", "letters, digits, - and _")  # of an export: a folder's name, also for Triton
#: Lightning's aliases for precisions.
_PRECISIONS = Rule(
    (), choice("32", "16", "64", "bf16", 32, 16, 64, None, "transformer-engine", "transformer-engine-float16").accepts
)
PRECISION = choice("auto", "32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true") | _PRECISIONS

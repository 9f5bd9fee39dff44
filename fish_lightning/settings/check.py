"""Check a config against the schema; one message per setting, as it is typed on the command line.

The ``hydra`` node is left to Hydra.
"""

import difflib
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fish_lightning.cli import choices
from fish_lightning.errors import UserError, first_line
from fish_lightning.settings.rules import Component, Each, Rule, Schema, as_typed, join_words
from fish_lightning.settings.tables import INSTANTIATED, LOGGED, SAMPLE_RECIPE, SCHEMAS, TARGETS, UNUSED

SHOWN = 4  # problems of a command that are listed; the others are counted


def conflicts(values: Mapping[str, Any], program: str) -> Iterator[tuple[str, str]]:  # noqa: PLR0912 - one for each
    """Find settings that are allowed one by one, but not together.

    Args:
        values: settings by key, only those that follow their rules.
        program: a key of ``SCHEMAS``.

    Yields:
        The key to change, and what to say after its value.
    """
    get = values.get
    if get("split.fold", 0) >= get("split.folds", math.inf):
        yield "split.fold", f"expected an integer below split.folds={values['split.folds']}"
    left = (1 - get("split.test", 0)) * (1 - get("split.val", 0))
    if left < 0.01:
        larger = max("split.test", "split.val", key=lambda key: get(key, 0))
        yield larger, f"it leaves {100 * left:.2g} % of the images to train on, expected at least 1 %"
    if get("trainer.max_epochs", 1) in (-1, None) and get("trainer.max_steps") == -1:
        yield "trainer.max_epochs", "expected an integer of at least 1, unless trainer.max_steps ends the run"
    monitor, mode = str(get("callbacks.early_stopping.monitor")), get("callbacks.early_stopping.mode")
    if mode is not None and LOGGED.get(monitor, mode) != mode:
        yield "callbacks.early_stopping.mode", f"expected {LOGGED[monitor]} for {monitor}"
    if get("test") is False and get("optimized_metric", "").startswith("test/"):
        yield "optimized_metric", "expected a validation metric (val/…), since test=false"
    if get("tune._target_") and get("ckpt") is not None:
        yield "ckpt", "expected null, since tune trains new models"
    if get("tune.lowest", 0) >= get("tune.highest", math.inf):
        yield "tune.lowest", f"expected less than tune.highest={values['tune.highest']}"
    if get("half") and get("int8"):
        yield "half", "expected false, since int8=true quantizes the float32 network"
    if get("data.resident") and get("data.cache") in ("off", False):
        yield "data.cache", "expected on or ram, since augment=gpu keeps decoded images"
    if get("data.cache") in ("on", True) and get("data.cache_dir", "") is None:
        yield "data.cache_dir", "expected a folder, since data.cache=on keeps decoded images in it"
    if get("serve.max_request_bytes", 0) > get("serve.queue_bytes", math.inf):
        yield "serve.max_request_bytes", f"expected at most serve.queue_bytes={values['serve.queue_bytes']}"
    if get("data.catalog", "") is None:
        if get("data.source", "") is None and program != "evaluate":
            yield "data.source", "expected data=sample, data=fish, data=folder or data.catalog=FILE"
        if get("data.root", "") is None and get("data.source._target_") in TARGETS:
            yield "data.root", "expected a folder: data.root=DIR"


def problems(cfg: DictConfig, program: str) -> list[str]:
    """Return what is wrong with a config, one line per setting, unknown ones first.

    Args:
        cfg: composed config, with or without its ``hydra`` node.
        program: a key of ``SCHEMAS``.
    """
    check = Check(cfg, program)
    return check.unknown + list(check.wrong.values())


def require_valid(cfg: DictConfig, program: str) -> None:
    """Refuse a config that does not follow the schema.

    Args:
        cfg: composed config, with or without its ``hydra`` node.
        program: a key of ``SCHEMAS``.

    Raises:
        UserError: there are problems; the message has the first of them and the number of the others.
    """
    refuse(problems(cfg, program))


def refuse(found: Sequence[str]) -> None:
    """Raise a ``UserError`` with the first of the messages and the number of the others, if there are any."""
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise UserError("\n".join([*found[:SHOWN], *more]))


#: Interpolations that only the running program knows, or that would import torch to look for a GPU.
_LATE = re.compile(r"\$\{(hydra:|workers:|uses_cuda:|paths\.output\})")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class Check:
    """The check of one config.

    Attributes:
        unknown: messages for settings that nothing reads.
        wrong: messages for settings that are missing or do not follow their rule, by key.
    """

    def __init__(self, cfg: DictConfig, program: str) -> None:
        self.wrong: dict[str, str] = {}
        self._cfg, self._program = cfg, program
        self._unread: dict[str, str] = {}  # settings that nothing reads, and the target that they stand beside
        self._read: list[str] = []
        self._values: dict[str, Any] = {}
        self._references: dict[str, list[str]] = {}

        schema = SCHEMAS[program]
        recipe = {name for name, part in schema.items() if part is SAMPLE_RECIPE.get(name)}
        node: Any = OmegaConf.to_container(cfg, resolve=False)
        self._mapping({**schema, "hydra": UNUSED}, "", node, required=schema.keys() - recipe)
        for key, words in conflicts(self._values, program):
            self.wrong.setdefault(key, f"{key}={as_typed(self._values[key])}: {words}")
        for key, origins in self._references.items():  # reported where the value comes from
            if any(f"{origin}.".startswith(f"{other}.") for origin in origins for other in {*self.wrong} - {key}):
                self.wrong.pop(key, None)
        self.unknown = [_no_such(key, program, target, self._read) for key, target in self._unread.items()]

    def _absent(self, key: str, schema: Schema) -> str:
        """Message for a setting that is missing, or a mapping that makes nothing."""
        if isinstance(schema, Rule):
            return f"{key} is required: {key}={schema.example}"
        groups = choices(self._program)
        if names := groups.get(key):
            return f"{key}: no value given; expected {key}={join_words(names, 'or')}"
        group, _, name = key.rpartition(".")
        if name in groups.get(group, ()):
            return f"{key}: no value given; expected {group}={name}"
        return f"{key}: expected {schema}"

    def _mapping(
        self, keys: Mapping[str, Schema], prefix: str, node: dict[Any, Any], required: Collection[str], target: str = ""
    ) -> None:
        """Check a mapping of known keys; ``target`` is what it makes, ``""`` if nothing."""
        self._read += [prefix + name for name, schema in keys.items() if isinstance(schema, Rule) and name[0] != "_"]
        for name, raw in node.items():
            if name in keys:
                self._setting(keys[name], f"{prefix}{name}", raw)
            elif not target or target in TARGETS:
                self._unread[f"{prefix}{name}"] = target
        for name in keys:
            if name in required and name not in node:
                self.wrong[prefix + name] = self._absent(prefix + name, keys[name])

    def _setting(self, schema: Schema, key: str, raw: Any) -> None:
        """Check one setting; ``raw`` is plain Python with its interpolations."""
        if schema is UNUSED:
            return
        if raw == "???":
            self.wrong[key] = self._absent(key, schema)
        elif (isinstance(raw, str) or isinstance(schema, Rule)) and "${" in str(raw):
            self._interpolation(schema, key, raw)
        elif isinstance(schema, Each) and isinstance(raw, schema.container):
            for name, part in raw.items() if isinstance(raw, dict) else enumerate(raw):
                self._setting(schema.item, f"{key}.{name}", part)
        elif isinstance(schema, Rule | Each) or not isinstance(raw, dict):
            self._value(schema, key, raw)
        elif not isinstance(schema, Component):
            self._mapping(schema, f"{key}.", raw, required=schema)
        elif "_target_" not in raw:
            self.wrong[key] = self._absent(key, schema)
        else:
            target = str(raw["_target_"])
            keys = {**INSTANTIATED, **schema.keys, **TARGETS.get(target, {})}
            complete = schema.complete and target in TARGETS
            self._mapping(keys, f"{key}.", raw, required=schema.keys if complete else (), target=target)

    def _interpolation(self, schema: Schema, key: str, raw: Any) -> None:
        """Check what an interpolation gives; a mapping is checked where it is."""
        if _LATE.search(str(raw)):
            return
        self._references[key] = _REFERENCE.findall(str(raw))
        try:
            value = OmegaConf.select(self._cfg, key, throw_on_missing=True)
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=isinstance(schema, Rule))
        except OmegaConfBaseException as error:
            self.wrong[key] = f"{key}={as_typed(raw)}: {first_line(error)}"
            return
        if isinstance(schema, Rule) or not isinstance(value, dict | list):
            self._value(schema, key, value)

    def _value(self, schema: Schema, key: str, value: Any) -> None:
        """Check a value that is no container, or one that a rule is about."""
        rule = schema if isinstance(schema, Rule) else getattr(schema, "other", None)
        if rule is not None and rule.accepts(value):
            self._values[key] = value
            return
        hint = ""
        if value and isinstance(value, str) and as_typed(value) == f"'{value}'":
            hint = ", without quotes"
        elif isinstance(value, float) and not math.isfinite(value):
            hint = ", and finite"
        elif type(value) in (int, float) and rule is not None and rule.accepts(str(value)):
            hint = f""", as text: "'{value}'\""""
        expected = schema if isinstance(schema, Rule | Component | Each) else "a mapping"
        self.wrong[key] = f"{key}={as_typed(value)}: expected {expected}{hint}"


def _no_such(key: str, program: str, target: str, read: Sequence[str]) -> str:
    """Message for a setting that nothing reads: what does, or which is near."""
    name = key.rpartition(".")[2]
    module, _, owner = target.rpartition(".")
    others = [of.rpartition(".")[2] for of in TARGETS if name in TARGETS[of] and of.rpartition(".")[0] == module]
    if not others:
        owner, others = program, [other for other in SCHEMAS if _has(SCHEMAS[other], key.split("."))]
    if others:
        return f"{key}: no such setting of {owner}; {join_words(others, 'and')} {'have' if others[1:] else 'has'} it"

    def likeness(other: str) -> tuple[float, float]:
        last = other.rpartition(".")[2]
        whole, part = (difflib.SequenceMatcher(None, *pair).ratio() for pair in ((key, other), (name, last)))
        return max(whole, part, 0.8 * (name in last.split("_"))), whole

    near = max(read, key=likeness)
    return f"{key}: no such setting; " + (f"did you mean {near}?" if likeness(near)[0] > 0.7 else "--cfg job lists all")


def _has(schema: Schema, names: Sequence[str]) -> bool:
    """Whether a schema has the key of these names."""
    if not names:
        return True
    keys = schema.keys if isinstance(schema, Component) else schema
    return isinstance(keys, Mapping) and names[0] in keys and _has(keys[names[0]], names[1:])

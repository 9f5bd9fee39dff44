"""``hydra/sweeper=optuna``: a Hydra sweeper on Optuna whose study is on disk and outlives a kill.

Imported at every start: Optuna itself only when it sweeps. (hydra-optuna-sweeper 1.3 requires Optuna < 3, and its 1.4,
not released yet, Hydra 1.4; neither goes on with a trial that was interrupted.)
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fish_lightning import compat
from fish_lightning.errors import UserError, end_with, first_line
from fish_lightning.files import override, shown, whole_file
from fish_lightning.sweeps.grid_sweeper import launch_all
from fish_lightning.sweeps.study import minimized, open_storage, sweep_lock
from fish_lightning.sweeps.table import METRICS, job_summary

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial


class OptunaSweeper(Sweeper):
    """Draws settings from a study and runs them as jobs, each in the folder that its trial's number names.

    Killed and started again with the same ``hydra.sweep.dir`` it goes on: finished trials count, and a trial that was
    interrupted runs again with its settings, in its folder, from its last checkpoint (``ckpt=auto``).

    Args:
        n_trials: finished trials that the study shall have; those of earlier starts count.
        n_jobs: trials at a time, for a launcher that runs jobs side by side.
        metric: what a job returns; a loss is minimized, all else maximized.
        storage: of the study: a database's address, or a file, which becomes Optuna's journal.
        study_name: in the storage.
        seed: of the sampler.
        sampler: makes Optuna's sampler from a seed.
        pruner: Optuna's pruner.
        params: search space: a sweep in Hydra's override grammar for each key.
    """

    hydra_context: HydraContext
    config: DictConfig
    launcher: Launcher

    def __init__(
        self,
        n_trials: int,
        n_jobs: int,
        metric: str,
        storage: str,
        study_name: str,
        seed: int,
        sampler: Callable[..., Any],
        pruner: Any,
        params: DictConfig,
    ) -> None:
        self.n_trials, self.n_jobs, self.metric = n_trials, n_jobs, metric
        self.storage, self.study_name = storage, study_name
        self.seed, self.sampler, self.pruner = seed, sampler, pruner
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher (Hydra calls this)."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has ``n_trials`` finished ones.

        Args:
            arguments: the command line's overrides; a sweep among them belongs to the search space.
        """
        try:
            self._sweep(arguments)
        except UserError as error:
            end_with(error)
        except KeyboardInterrupt:  # a launcher's that runs jobs side by side
            again = override("hydra.sweep.dir", self.config.hydra.sweep.dir)
            print(f"stopped\ngo on with the same command and:  {again}", file=sys.stderr, flush=True)
            sys.exit(130)

    def _sweep(self, arguments: list[str]) -> None:
        for name, value, least in (("n_trials", self.n_trials, 1), ("n_jobs", self.n_jobs, 1), ("seed", self.seed, 0)):
            if not isinstance(value, int) or value < least:
                raise UserError(f"hydra.sweeper.{name}={value}: it is a whole number, {least} or more")
        if not self.study_name:
            raise UserError("hydra.sweeper.study_name: a study needs one, to be found again")
        if self.metric not in METRICS:
            raise UserError(f"hydra.sweeper.metric={self.metric}: runs measure {', '.join(METRICS)}")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides(
            [*(f"{key!s}={value}" for key, value in (self.params or {}).items()), *arguments]
        )
        overrides = {override.get_key_element(): override for override in given}  # the command line's come last
        space = {key: distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        fixed = [
            f"{key}={o.get_value_element_as_str()}"
            for key, o in overrides.items()
            if key not in space and not key.startswith("hydra.")
        ]
        if not space:
            raise UserError("hydra/sweeper=optuna: no search space: give hydra.sweeper.params or optimizer.lr=…")
        first = {key: first_value(wanted) for key, wanted in space.items()}
        trials = [first] + [first | {key: v} for key, d in space.items() for v in getattr(d, "choices", ())[1:]]
        # Fails before a folder is made where a key or a choice does not exist (Hydra's own error).
        self.validate_batch_is_legal([[*fixed, *(f"{key}={v}" for key, v in trial.items())] for trial in trials])

        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        with sweep_lock(folder):
            study = self._study(
                {
                    "metric": self.metric,
                    "space": {key: str(wanted) for key, wanted in space.items()},
                    "typed": {key: str(overrides[key].input_line).partition("=")[2] for key in space},
                    "fixed": sorted(fixed),
                },
                folder,
            )
            with whole_file(folder / "multirun.yaml") as temporary:
                OmegaConf.save(self.config, temporary)
            self._run(study, space, fixed, folder)

    def _run(self, study: "Study", space: "dict[str, BaseDistribution]", fixed: list[str], folder: Path) -> None:
        from optuna.trial import TrialState

        interrupted = [t.number for t in study.get_trials(deepcopy=False) if t.state == TrialState.RUNNING]
        before = _finished(study)
        print(
            f"study    {self.n_trials} trials, {'lowest' if minimized(self.metric) else 'highest'} {self.metric}"
            + (f"; {before} are done, {len(interrupted)} go on" if before or interrupted else ""),
            f"to go on with it after a stop, the same command and:  {override('hydra.sweep.dir', folder)}",
            sep="\n",
            flush=True,
        )
        lost: list[int] = []
        while interrupted or lost or _finished(study) < self.n_trials:
            room = min(self.n_jobs, max(self.n_trials - _finished(study), len(interrupted)))
            again, interrupted = interrupted[:room], interrupted[room:]
            if not again and lost:  # each alone: with one process that dies joblib ends all of them
                room, again, lost = 1, lost[:1], lost[1:]
            trials = [compat.running_trial(study, number) for number in again]
            trials += [study.ask() for _ in range(room - len(trials))]
            jobs = [self._job(trial, space, fixed) for trial in trials]
            folders = [folder / str(trial.number) for trial in trials]
            launch_all(self.launcher.launch, folder, jobs, trials[0].number)
            for trial, job in zip(trials, folders, strict=True):
                if self._is_lost(trial, job):
                    lost.append(trial.number)
                else:
                    self._tell(study, trial, job)

    def _job(self, trial: "Trial", space: "dict[str, BaseDistribution]", fixed: list[str]) -> list[str]:
        try:
            drawn = [f"{key}={compat.suggest(trial, key, wanted)}" for key, wanted in space.items()]
        except (TypeError, ValueError) as error:
            raise UserError(f"hydra.sweeper.sampler: it cannot draw: {first_line(error)}") from None
        prunes = OmegaConf.select(self.config, "callbacks.pruning") is not None
        reports = [f"callbacks.pruning.trial={trial.number}"] if prunes else []
        # The folder is set by the trial, since the numbers of trials that go on have gaps.
        return [*fixed, *drawn, *reports, "ckpt=auto", f"hydra.sweep.subdir={trial.number}"]

    def _is_lost(self, trial: "Trial", job: Path) -> bool:
        """Whether the job ended without a word, for the first time: killed, out of memory, taken off its node.

        It then runs again, from its last checkpoint; the second time it counts as failed. Where a launcher gave up on
        jobs that still run, they are waited for in their folders.
        """
        if job_summary(job) or (job / "error.txt").is_file() or trial.user_attrs.get("lost"):
            return False
        trial.set_user_attr("lost", True)
        print(f"trial {trial.number} ended without a word: it goes on from its last checkpoint, once", flush=True)
        return True

    def _tell(self, study: "Study", trial: "Trial", job: Path) -> None:
        """Record what the job's ``summary.json`` says: launchers tell of some failures and hide others."""
        from optuna.trial import TrialState

        summary = job_summary(job)
        stage, _, name = self.metric.partition("/")
        value = summary.get(stage, {}).get(name)
        if summary.get("pruned"):
            study.tell(trial, state=TrialState.PRUNED)
        elif value is None or math.isnan(value):
            study.tell(trial, state=TrialState.FAIL)
        else:
            study.tell(trial, value)

    def _study(self, made_with: dict[str, Any], folder: Path) -> "Study":
        """The study in the storage, made if there is none.

        Raises:
            UserError: it cannot be opened, it was made with another metric, search space or settings, or its trials are
                in another folder.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(
                storage=open_storage(self.storage),
                study_name=self.study_name,
                direction="minimize" if minimized(self.metric) else "maximize",
                pruner=self.pruner,
                load_if_exists=True,
            )
        except Exception as error:  # each database has errors of its own
            raise UserError(f"hydra.sweeper.storage={self.storage}: it cannot be opened: {first_line(error)}") from None
        made = study.user_attrs.get("made_with")
        if made is None:
            study.set_user_attr("made_with", made_with)
        elif any(made[part] != made_with[part] for part in ("metric", "space", "fixed")):
            raise UserError(
                f"the study in {self.storage} was made with other parameters: {_difference(made, made_with)}\n"
                "go on with those, or begin another with another hydra.sweep.dir"
            )
        home = study.user_attrs.get("folder")
        if home is None:
            study.set_user_attr("folder", str(folder.resolve()))
        elif home != str(folder.resolve()):
            raise UserError(
                f"the study in {self.storage} has its trials in {shown(home)}\n"
                f"go on with {override('hydra.sweep.dir', home)}\n"
                "or begin another with another hydra.sweeper.study_name"
            )
        # Begun anew at each start, a seeded sampler would draw again what it drew first.
        study.sampler = self.sampler(seed=self.seed + len(study.get_trials(deepcopy=False)))
        return study


def distribution(override: Override) -> "BaseDistribution":
    """Optuna's distribution for a sweep in Hydra's grammar.

    ``choice(a,b)`` and ``a,b`` are categories, ``range(1,9,2)`` steps, ``interval(0,1)`` a range of numbers,
    ``int(interval(1,9))`` of whole ones, and ``tag(log, …)`` draws by their logarithm.

    Raises:
        UserError: Optuna has none for it.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep: Any = override.value()
    log = "log" in getattr(sweep, "tags", ())
    try:
        if isinstance(sweep, RangeSweep) and isinstance(steps := sweep.range(), range):
            return IntDistribution(steps.start, steps[-1], step=steps.step, log=log)
        if isinstance(sweep, IntervalSweep) and sweep.start is not None and sweep.end is not None:
            if isinstance(sweep.start, int) and isinstance(sweep.end, int):
                return IntDistribution(sweep.start, sweep.end, log=log)
            return FloatDistribution(sweep.start, sweep.end, log=log)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        text = override.input_line or override.get_key_element()
        raise UserError(f"{text}: Optuna cannot search it: {first_line(error)}") from None


def first_value(wanted: "BaseDistribution") -> Any:
    """Some value of it."""
    return wanted.choices[0] if hasattr(wanted, "choices") else wanted.low  # type: ignore[attr-defined]


def _difference(made: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What two descriptions of a study do not share, in a few words."""
    parts = []
    if made["metric"] != wanted["metric"]:
        parts.append(f"{made['metric']}, not {wanted['metric']}")
    for key in sorted(made["space"].keys() | wanted["space"].keys()):
        if made["space"].get(key) != wanted["space"].get(key):
            was, now = (of["typed"].get(key, "not searched") for of in (made, wanted))
            parts.append(f"{key} was {was}, is {now}")
    gone, new = (sorted(set(a["fixed"]) - set(b["fixed"])) for a, b in ((made, wanted), (wanted, made)))
    parts += [f"without {word}" for word in gone] + [f"with {word}" for word in new]
    return "; ".join(parts[:4]) + ("; …" if len(parts) > 4 else "")


def _finished(study: "Study") -> int:
    return sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))

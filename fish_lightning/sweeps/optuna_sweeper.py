"""``hydra/sweeper=optuna``: a Hydra sweeper whose Optuna study is stored on disk and can be resumed after a kill.

Imported at every start, and so imports Optuna only in a sweep. (hydra-optuna-sweeper 1.3 requires Optuna < 3, and its
unreleased 1.4 requires Hydra 1.4; neither resumes an interrupted trial.)
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
from fish_lightning.files import atomic_write, override, shown
from fish_lightning.settings.rules import COUNT, NON_NEGATIVE
from fish_lightning.sweeps.grid_sweeper import launch_all
from fish_lightning.sweeps.study import minimized, open_storage, sweep_lock
from fish_lightning.sweeps.table import METRICS, job_summary

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial


#: Failed trials in a row that end a study.
FAILURES = 5


@dataclass(eq=False)
class OptunaSweeper(Sweeper):
    """Runs the trials of a study as jobs, each in a folder named after its number.

    Started again with the same ``hydra.sweep.dir`` it resumes the study: finished trials count, and an interrupted
    trial runs again with the same settings, in the same folder, from its last checkpoint (``ckpt=auto``).

    Args:
        n_trials: number of trials with a result, including those of earlier starts; failed ones do not count.
        n_jobs: number of trials to run at a time, for launchers that run jobs in parallel.
        metric: metric that a job returns; a loss is minimized, other metrics are maximized.
        storage: storage of the study: a database URL, or a file for Optuna's journal.
        study_name: name of the study in the storage.
        seed: random seed of the sampler.
        sampler: function that creates Optuna's sampler from a seed.
        pruner: Optuna's pruner.
        params: search space, as sweeps in Hydra's override grammar by key.
    """

    n_trials: int
    n_jobs: int
    metric: str
    storage: str
    study_name: str
    seed: int
    sampler: Callable[..., Any]
    pruner: Any
    params: DictConfig
    hydra_context: HydraContext = field(init=False)
    config: DictConfig = field(init=False)
    launcher: Launcher = field(init=False)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Create the launcher (called by Hydra)."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until the study has ``n_trials`` finished ones.

        Args:
            arguments: overrides on the command line; sweeps among them extend the search space.
        """
        try:
            self._sweep(arguments)
        except UserError as error:
            end_with(error)
        except KeyboardInterrupt:  # from a launcher that runs jobs in parallel
            again = override("hydra.sweep.dir", self.config.hydra.sweep.dir)
            print(f"stopped\nresume with the same command and: {again}", file=sys.stderr, flush=True)
            sys.exit(130)

    def _sweep(self, arguments: list[str]) -> None:
        for name, rule in (("n_trials", COUNT), ("n_jobs", COUNT), ("seed", NON_NEGATIVE)):
            if not rule.accepts(value := getattr(self, name)):
                raise UserError(f"hydra.sweeper.{name}={value}: expected {rule}")
        if not self.study_name:
            raise UserError("hydra.sweeper.study_name is empty: a study is resumed by its name")
        if self.metric not in METRICS:
            raise UserError(f"hydra.sweeper.metric={self.metric}: expected one of {', '.join(METRICS)}")
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        params = [f"{key!s}={value}" for key, value in (self.params or {}).items()]
        given = parser.parse_overrides([*params, *arguments])  # the command line comes last
        overrides = {override.get_key_element(): override for override in given}
        space: dict[str, Any] = {key: distribution(o) for key, o in overrides.items() if o.is_sweep_override()}
        fixed = [
            f"{key}={o.get_value_element_as_str()}"
            for key, o in overrides.items()
            if key not in space and not key.startswith("hydra.")
        ]
        if not space:
            raise UserError(
                "hydra/sweeper=optuna: no search space; set hydra.sweeper.params or sweep over optimizer.lr=…"
            )
        values = {key: d.choices if hasattr(d, "choices") else (d.low,) for key, d in space.items()}
        first = {key: v[0] for key, v in values.items()}
        trials = [first] + [first | {key: other} for key, v in values.items() for other in v[1:]]
        # Raises Hydra's own error, before a folder is created, if a key or a choice does not exist.
        self.validate_batch_is_legal([[*fixed, *(f"{key}={v}" for key, v in trial.items())] for trial in trials])

        folder = Path(self.config.hydra.sweep.dir)
        with sweep_lock(folder):
            settings = {
                "metric": self.metric,
                "space": {key: str(values) for key, values in space.items()},
                "typed": {key: str(overrides[key].input_line).partition("=")[2] for key in space},
                "fixed": sorted(fixed),
            }
            study = self._study(settings, folder)
            with atomic_write(folder / "multirun.yaml") as temporary:
                OmegaConf.save(self.config, temporary)
            self._run(study, space, fixed, folder)

    def _run(self, study: "Study", space: "dict[str, BaseDistribution]", fixed: list[str], folder: Path) -> None:
        interrupted = [t.number for t in study.get_trials(deepcopy=False) if t.state.name == "RUNNING"]
        before = _finished(study)
        print(
            f"study    {self.n_trials} trials, {'minimizing' if minimized(self.metric) else 'maximizing'} {self.metric}"
            + (f"; {before} finished, {len(interrupted)} to resume" if before or interrupted else ""),
            f"to resume it, repeat the command with {override('hydra.sweep.dir', folder)}",
            sep="\n",
            flush=True,
        )
        lost: list[int] = []
        failures = 0  # in a row
        while interrupted or lost or _finished(study) < self.n_trials:
            room = min(self.n_jobs, max(self.n_trials - _finished(study), len(interrupted)))
            again, interrupted = interrupted[:room], interrupted[room:]
            if not again and lost:  # one at a time: joblib ends all its processes when one dies
                room, again, lost = 1, lost[:1], lost[1:]
            trials = [compat.running_trial(study, number) for number in again]
            trials += [study.ask() for _ in range(room - len(trials))]
            jobs = [self._job(trial, space, fixed) for trial in trials]
            launch_all(self.launcher.launch, folder, jobs, trials[0].number)
            for trial in trials:
                job = folder / str(trial.number)
                if self._is_lost(trial, job):
                    lost.append(trial.number)
                else:
                    failures = 0 if self._tell(study, trial, job) else failures + 1
            if failures >= FAILURES:
                raise UserError(
                    f"the last {failures} trials have failed: see error.txt in {shown(job)} and others\n"
                    "correct their settings in a new sweep; or resume this study with the same command and:\n"
                    + override("hydra.sweep.dir", folder)
                )

    def _job(self, trial: "Trial", space: "dict[str, BaseDistribution]", fixed: list[str]) -> list[str]:
        """Draw the settings of a trial and return the overrides of its job."""
        try:
            settings = [f"{key}={compat.suggest(trial, key, values)}" for key, values in space.items()]
        except (TypeError, ValueError) as error:
            raise UserError(f"hydra.sweeper.sampler cannot sample: {first_line(error)}") from None
        prunes = OmegaConf.select(self.config, "callbacks.pruning") is not None
        reports = [f"callbacks.pruning.trial={trial.number}"] if prunes else []
        # The folder is named after the trial, since the numbers of resumed trials have gaps.
        return [*fixed, *settings, *reports, "ckpt=auto", f"hydra.sweep.subdir={trial.number}"]

    def _is_lost(self, trial: "Trial", job: Path) -> bool:
        """Return whether the job has left no result for the first time: killed, out of memory, preempted.

        It is then resumed once; the second time it counts as failed. If the launcher gave up on jobs that are still
        running, the lock of the run folder makes the new job wait for them.
        """
        if job_summary(job) or (job / "error.txt").is_file() or trial.user_attrs.get("lost"):
            return False
        trial.set_user_attr("lost", True)
        print(f"trial {trial.number} was killed: resuming it from its last checkpoint, once", flush=True)
        return True

    def _tell(self, study: "Study", trial: "Trial", job: Path) -> bool:
        """Record the result in the job's ``summary.json``: launchers report some failures and hide others.

        Returns:
            Whether there is one.
        """
        from optuna.trial import TrialState

        summary = job_summary(job)
        stage, _, name = self.metric.partition("/")
        value = summary.get(stage, {}).get(name)
        state = TrialState.FAIL if value is None or math.isnan(value) else TrialState.COMPLETE
        if summary.get("pruned"):
            state = TrialState.PRUNED
        study.tell(trial, value if state == TrialState.COMPLETE else None, state)
        return state != TrialState.FAIL

    def _study(self, settings: dict[str, Any], folder: Path) -> "Study":
        """Open the study, or create it if there is none.

        Raises:
            UserError: the storage cannot be opened, the study has another metric, search space or settings, or its
                trials are in another folder.
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
        except Exception as error:  # each database has its own
            raise UserError(f"hydra.sweeper.storage={self.storage} cannot be opened: {first_line(error)}") from None
        then = study.user_attrs.get("made_with")
        if then is None:
            study.set_user_attr("made_with", settings)
        elif any(then[part] != settings[part] for part in ("metric", "space", "fixed")):
            raise UserError(
                f"the study in {self.storage} was started with other settings: {_difference(then, settings)}\n"
                "resume it with those, or start a new study in another hydra.sweep.dir"
            )
        home = study.user_attrs.get("folder")
        if home is None:
            study.set_user_attr("folder", str(folder.resolve()))
        elif home != str(folder.resolve()):
            raise UserError(
                f"the trials of the study in {self.storage} are in {shown(home)}\n"
                f"resume it with {override('hydra.sweep.dir', home)}\n"
                "or start another with another hydra.sweeper.study_name"
            )
        # With the same seed at each start the sampler would repeat its first draws.
        study.sampler = self.sampler(seed=self.seed + len(study.get_trials(deepcopy=False)))
        return study


def distribution(override: Override) -> "BaseDistribution":
    """Return Optuna's distribution for a sweep in Hydra's grammar.

    ``choice(a,b)`` and ``a,b`` are categorical, ``range(1,9,2)`` integers with a step, ``interval(0,1)`` floats,
    ``int(interval(1,9))`` integers; ``tag(log, …)`` samples on a logarithmic scale.

    Raises:
        UserError: Optuna has no such distribution.
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
        raise UserError(f"{text}: not supported by Optuna: {first_line(error)}") from None


def _difference(then: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first differences between the settings of two studies."""
    parts = [f"{then['metric']}, not {now['metric']}"] if then["metric"] != now["metric"] else []
    for key in sorted(then["space"].keys() | now["space"].keys()):
        if then["space"].get(key) != now["space"].get(key):
            one, other = (of["typed"].get(key, "not searched") for of in (then, now))
            parts.append(f"{key} was {one}, is now {other}")
    removed, added = (sorted(set(a["fixed"]) - set(b["fixed"])) for a, b in ((then, now), (now, then)))
    parts += [f"with {word}" for word in removed] + [f"without {word}" for word in added]
    return "; ".join(parts[:4]) + ("; …" if len(parts) > 4 else "")


def _finished(study: "Study") -> int:
    """Return the number of trials that have a result; failed ones have none."""
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state.is_finished() and trial.state.name != "FAIL" for trial in trials)

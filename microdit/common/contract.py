"""Define the names in the MLflow store, shared by its writers and `analysis`.

Stored runs depend on every value here, so values never change. The module needs neither torch nor a tracking library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EXPERIMENT_PREFIX = "microdit/"  # of the name of each study's experiment
SINGLE_RUN_STUDY = "train"  # study of runs outside of any study
SINGLE_RUN_EXPERIMENT = EXPERIMENT_PREFIX + SINGLE_RUN_STUDY
OUR_EXPERIMENTS = f"name LIKE '{EXPERIMENT_PREFIX}%'"  # MLflow's filter for all of them

SOURCE = "microdit-sweep"  # value of MlflowTag.SOURCE_NAME
SEED = "seed"  # the param that every trial has

CONFIG_FILE = "config.yaml"  # artifact of a trial: its resolved configuration
STUDY_FILE = "study.yaml"  # artifact of a launch: its question, arms, metrics and figure
SAMPLES_FOLDER = "samples"  # artifacts of a trial: sample images and their prompts
SAMPLES_KEY = "samples"  # key of the sample images logged during training


def experiment_name(study: str) -> str:
    """Return the name of a study's experiment."""
    return EXPERIMENT_PREFIX + study


class Role:
    """List the values of `Tag.ROLE`."""

    LAUNCH = "study"  # parent run of a study's launch
    TRIAL = "trial"  # one training run


class Status:
    """List MLflow's statuses of a run."""

    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"


class Outcome:
    """List the values of `Tag.OUTCOME`: endings that MLflow has no status for."""

    PRUNED = "pruned"  # Status.KILLED
    DIVERGED = "diverged"  # Status.FAILED


class StudyKey:
    """List the keys of a launch's `STUDY_FILE`."""

    NAME = "name"
    SCALE = "scale"
    QUESTION = "question"
    BASELINE = "baseline"
    HOLDS = "holds"
    CUMULATIVE = "cumulative"
    DIVERGENCE = "divergence"
    SEARCH = "search"
    OBJECTIVES = "objectives"
    ARMS = "arms"
    SEEDS = "seeds"
    CLAIMS = "claims"
    PLUGINS = "plugins"
    PAPER = "paper"  # a mapping with the next two
    SECTION = "section"
    CLAIM = "claim"
    METRICS = "metrics"  # a mapping with the next two
    PRIMARY = "primary"
    DIRECTION = "direction"
    FIGURE = "figure"  # a mapping with the next two
    X = "x"
    HUE = "hue"


class Tag:
    """List this project's tags on experiments, launches and trials."""

    PREFIX = "microdit."
    # of a launch or trial
    ROLE = "microdit.role"
    STUDY = "microdit.study"
    SCALE = "microdit.scale"
    # of an experiment
    PRIMARY = "microdit.primary"
    DIRECTION = "microdit.direction"
    # of a launch
    PLAN = "microdit.plan"
    QUEUE = "microdit.queue"
    # of a trial: what it is
    ARM = "microdit.arm"
    TRIAL_KEY = "microdit.trial_key"
    DATA_FINGERPRINT = "microdit.data_fingerprint"
    FEATURE_NET = "microdit.feature_net"
    ALGORITHM = "microdit.algorithm"
    SAMPLES = "microdit.samples"
    TRAINING_STEPS = "microdit.training.steps"
    TRAINING_BATCH_SIZE = "microdit.training.batch_size"
    # of a trial: how it was run
    ATTEMPT = "microdit.attempt"
    PROCESS = "microdit.process"
    RERUN = "microdit.rerun"
    LOG = "microdit.log"
    OUTPUT_DIR = "microdit.output_dir"
    REUSED_FROM = "microdit.reused_from"
    TRAINED_IN = "microdit.trained_in"
    DEVICE = "microdit.device"
    VERSIONS = "microdit.versions"
    # of a trial: how it ended
    OUTCOME = "microdit.outcome"
    ERROR = "microdit.error"
    TRACEBACK = "microdit.traceback"
    # provenance of a launch or trial
    COMMAND = "microdit.command"
    GIT_COMMIT = "microdit.git_commit"
    GIT_DIRTY = "microdit.git_dirty"
    VERSION = "microdit.version"
    HOST = "microdit.host"
    PACKAGES = "microdit.packages"


class MlflowTag:
    """List tags that MLflow itself defines."""

    PARENT = "mlflow.parentRunId"
    NOTE = "mlflow.note.content"
    SOURCE_NAME = "mlflow.source.name"
    SOURCE_TYPE = "mlflow.source.type"
    SOURCE_COMMIT = "mlflow.source.git.commit"
    USER = "mlflow.user"
    EXPERIMENT_KIND = "mlflow.experimentKind"
    SHARED_VIEW_PREFIX = "mlflow.sharedViewState."


# metrics

FINAL_PREFIX = "final/"  # scores of the trained model, one value per run
COST_PREFIX = "cost/"  # parameters, FLOPs, seconds; one value per run
SYSTEM_PREFIX = "system/"  # MLflow's own measurements of the machine
SINGLE_VALUE_PREFIXES = (FINAL_PREFIX, COST_PREFIX)

TRAIN_LOSS = "train/loss"
VAL_LOSS_CURVE = "val/loss"  # at each validation; the metric that pruners use
VAL_LOSS_QUARTER_PREFIX = "val/loss_q"  # val/loss_q1 ... val/loss_q4: validation loss by quarter of the noise levels
IMAGES_PER_SECOND = "images_per_second"

FINAL_VAL_LOSS = "val_loss"  # the score that is stored as final/val_loss; the only one that needs no samples
REFERENCE_IMAGES = "reference_images"  # final/reference_images: the number of real images that samples are scored on
FLOOR_SUFFIX = "_floor"  # final/fd_floor: the score of real images against other real images
REAL_SUFFIX = "_real"  # final/clip_score_real: the score of real images
NOISE_SET_PREFIX = "noise"  # final/noise1/fd: the score of the same weights on samples from other noise

PARAMS = "cost/params"
ACTIVE_PARAMS = "cost/active_params"
TRAIN_FLOPS = "cost/train_flops"
GFLOPS_PER_IMAGE = "cost/gflops_per_image"
SECONDS = "cost/seconds"
USD = "cost/usd"
MIXER_PARAMS_RATIO = "cost/mixer_params_ratio"
MIXER_FLOPS_RATIO = "cost/mixer_flops_ratio"


@dataclass(frozen=True)
class ScoreInfo:
    """Describe how a score is printed, and whether higher values are better."""

    label: str
    higher_is_better: bool = False


@dataclass(frozen=True)
class CostInfo:
    """Describe how a cost is printed.

    `label` is for axes and sentences, `heading` for columns of tables.
    """

    label: str
    heading: str = ""
    unit: str = ""


SCORES = {  # in the order of tables
    "clip_fd": ScoreInfo("CLIP-FD"),
    "fd": ScoreInfo("FD"),
    "kid": ScoreInfo("KD"),
    "precision": ScoreInfo("precision", higher_is_better=True),
    "recall": ScoreInfo("recall", higher_is_better=True),
    "clip_score": ScoreInfo("CLIP score", higher_is_better=True),
    "class_accuracy": ScoreInfo("class accuracy", higher_is_better=True),
    FINAL_VAL_LOSS: ScoreInfo("validation loss"),
}
INCEPTION_LABELS = {"fd": "FID", "kid": "KID"}  # only on Inception features
DEFAULT_PRIMARY = "clip_fd"
NOT_SCORES = ("samples", REFERENCE_IMAGES)  # final/*: numbers of images, not scores
COSTS = {
    PARAMS: CostInfo("parameters", "params"),
    ACTIVE_PARAMS: CostInfo("active parameters", "active"),
    GFLOPS_PER_IMAGE: CostInfo("GFLOPs per image", "GFLOPs/image", "GFLOP"),
    TRAIN_FLOPS: CostInfo("training FLOPs", "training FLOPs", "FLOP"),
    SECONDS: CostInfo("training time", "seconds", "s"),
    USD: CostInfo("cost in USD", "USD", "USD"),
    MIXER_PARAMS_RATIO: CostInfo("mixer's parameters / backbone's"),
    MIXER_FLOPS_RATIO: CostInfo("mixer's FLOPs / backbone's"),
}
MINIMIZE, MAXIMIZE = "minimize", "maximize"
DIRECTIONS = (MINIMIZE, MAXIMIZE)  # of a study's primary metric and objectives


def final_metric(score: str) -> str:
    """Return the metric that stores a score: `fd` is stored as `final/fd`."""
    return FINAL_PREFIX + score


def noise_set_metric(number: int, score: str) -> str:
    """Return the metric that stores a score on samples from one set of noise.

    Args:
        number: of the set, from 1.
        score: name of the score.
    """
    return f"{FINAL_PREFIX}{NOISE_SET_PREFIX}{number}/{score}"


def objective_metric(objective: str) -> str:
    """Return the metric that a search's objective names.

    An objective is a score, or any metric's full name, recognized by its slash.
    """
    return objective if "/" in objective else final_metric(objective)


@dataclass(frozen=True)
class SearchRange:
    """Hold the range of a searched setting, such as `{low: 1.0e-3, high: 0.3}`.

    `whole` is true if all bounds are whole numbers, so that only whole numbers are drawn.
    """

    low: float
    high: float
    log: bool
    step: float | None
    whole: bool

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SearchRange:
        """Return the range that a mapping describes.

        Args:
            values: `low`, `high`, and optionally `log` and `step`.
        """
        low, high, step = values["low"], values["high"], values.get("step")
        log = bool(values.get("log", False))
        if isinstance(low, int) and isinstance(high, int) and isinstance(step, int | None):
            return cls(low, high, log, step or 1, whole=True)
        return cls(float(low), float(high), log, step, whole=False)

    @property
    def distribution(self) -> str:
        """Return the name of Optuna's class for this range.

        Returns:
            "IntDistribution" or "FloatDistribution".
        """
        return "IntDistribution" if self.whole else "FloatDistribution"

    @property
    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of that class."""
        return {"low": self.low, "high": self.high, "log": self.log, "step": self.step}

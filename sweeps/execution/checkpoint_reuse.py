"""Trials that differ in evaluation alone are trained once: each takes over the last checkpoint of the first.

Under `root`, `.trained/<key>` names the folder that was trained with those settings and data. Where that folder can't
be reached, as from another machine, a trial trains for itself.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from microdit.common.errors import CheckpointError
from microdit.common.files.atomic import atomic_path, write_text
from microdit.config.identity import training_key
from microdit.training.checkpoint import checkpoint_folder, checkpoints, read_checkpoint
from sweeps.planning.trials import Trial

log = logging.getLogger(__name__)

PATIENCE = 20  # seconds to wait for a twin that trains now; then the trial goes back to the queue


def duplicate_training_keys(trials: Sequence[Trial]) -> set[str]:
    """Keys of the trials that an earlier one of `trials` trains for."""
    seen: set[tuple[str, str]] = set()
    twins = set()
    for trial in trials:
        key = (training_key(trial.config), trial.data_fingerprint)
        if key in seen:
            twins.add(trial.key)
        seen.add(key)
    return twins


@contextmanager
def reuse_trained_checkpoint(trial: Trial, root: Path, reuse: bool = True) -> Iterator[str]:
    """Keeps twins from training at once; gives the folder that was taken over, empty where the trial trains itself.

    Nothing is taken over where `reuse` is false.

    Raises filelock.Timeout where a twin is at it.
    """
    note = root / ".trained" / f"{training_key(trial.config)}-{trial.data_fingerprint}"
    note.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(trial.config.output_dir)
    with FileLock(f"{note}.lock", timeout=PATIENCE):
        yield _take_over(trial, note, folder) if reuse else ""
        if (folder / "metrics.json").is_file():
            write_text(note, str(folder.resolve()))


def _take_over(trial: Trial, note: Path, folder: Path) -> str:
    own = folder / "checkpoints"
    if not note.is_file() or checkpoints(own):
        return ""
    origin = Path(note.read_text(encoding="utf-8"))
    last = checkpoint_folder(origin / "checkpoints", trial.config.training.steps)
    if last not in checkpoints(last.parent):
        return ""
    try:
        read_checkpoint(last)
    except CheckpointError as error:
        log.warning("%s; this trial trains for itself", error)
        return ""
    with atomic_path(own / last.name) as temporary:
        shutil.copytree(last, temporary)
    return str(origin)

"""Train the network of trials that differ only in evaluation once.

Later trials reuse the last checkpoint of the first. Under `root`, `.trained/<key>` holds the path of the folder that
was trained with those settings and data. If that folder cannot be reached, for example from another machine, the trial
trains again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from microdit.common.errors import CheckpointError
from microdit.common.files.atomic import atomic_path, write_text
from microdit.config.identity import training_key
from microdit.training.checkpoint import read_checkpoint
from microdit.training.run_files import checkpoint_folder, checkpoints
from sweeps.planning.trials import Trial

log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 20  # for a process with the same folder or network; then the trial returns to the queue


@contextmanager
def reuse_trained_checkpoint(trial: Trial, root: Path, reuse: bool = True) -> Iterator[str]:
    """Lock a training configuration, and copy its checkpoint if it has been trained.

    Args:
        trial: the trial that holds the lock; the checkpoint is copied to its folder.
        root: folder of outputs.
        reuse: whether an existing checkpoint may be used.

    Yields:
        The folder whose checkpoint is reused, or "" if the trial trains itself.

    Raises:
        filelock.Timeout: if another process is training the same configuration.
    """
    note = root / ".trained" / f"{training_key(trial.config)}-{trial.data_fingerprint}"
    note.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(trial.config.output_dir)
    with FileLock(f"{note}.lock", timeout=LOCK_TIMEOUT_SECONDS):
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
        log.warning("%s; this trial trains again", error)
        return ""
    with atomic_path(own / last.name) as temporary:
        shutil.copytree(last, temporary)
    return str(origin)

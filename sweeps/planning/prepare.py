"""Prepare planned trials: encode their data, and name their folders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from microdit.config.identity import former_keys
from microdit.config.schema import Config
from microdit.evaluation.report import feature_net_name
from microdit.pipeline.train_and_evaluate import check_files, prepare
from sweeps.planning.trials import Trial, folder_name, identity_tags


def prepare_trials(trials: Sequence[Trial], root: Path, suffix: str = "") -> list[Trial]:
    """Encode the training data into the cache, and check all sizes.

    Args:
        trials: planned trials.
        root: folder of outputs.
        suffix: end of each trial's folder name.

    Returns:
        The trials with fingerprint, scoring networks and folder. A folder's name contains a digest of settings and
        data, so that a run never resumes from a checkpoint of other data.

    Raises:
        MicroditError: if a trial could not start.
    """
    for trial in trials:  # report what is missing before anything is encoded
        check_files(trial.config)
    fingerprints: dict[object, tuple[str, str]] = {}
    ready = []
    for trial in trials:
        config = trial.config
        model = config.model
        sizes = (model.in_channels, model.input_size, model.caption_channels, config.evaluation.samples)
        shared = (config.data, config.autoencoder, config.text, config.alignment, model.side, *sizes)
        if shared not in fingerprints:
            components = prepare(config)
            fingerprints[shared] = components.data_fingerprint, components.train.fingerprint
        data, train_data = fingerprints[shared]
        name = folder_name(f"{trial.arm}-seed{trial.seed}", trial.key, data)
        folder = root / trial.study / trial.scale / f"{name}{suffix}"
        config = dataclasses.replace(config, output_dir=str(folder))
        net = feature_net_name(config.evaluation)
        former = _former_identities(config, data, train_data, net)
        ready.append(dataclasses.replace(trial, config=config, data_fingerprint=data, feature_net=net, former=former))
    return ready


def _former_identities(config: Config, data: str, train_data: str, feature_net: str) -> list[dict[str, str]]:
    """Return the tags of runs of older algorithms that remain valid for `config`, newest first.

    Algorithm 1 named the data by its training split alone, which also fixes the other split of generated scenes and of
    encoded images, but not of a folder.
    """
    whole = config.data.name == "emoji-captions" or (config.data.name == "latents" and config.data.originals is None)
    return [
        identity_tags(key, data if algorithm > 1 else train_data, feature_net)
        for algorithm, key in former_keys(config).items()
        if algorithm > 1 or whole
    ]

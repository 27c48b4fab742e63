"""`microdit evaluate`: score a trained run again, or any captioned images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.common.command_line import add_command
from microdit.common.errors import ConfigError
from microdit.common.process.distributed import is_main

SAMPLING_KEYS = ("samples", "guidance", "prompts")  # keys of `evaluation` that `evaluate` overrides
SCORING_KEYS = (
    "seed",
    "metrics",
    "feature_net",
    "feature_weights",
    "clip",
    "reference_count",
    "reference_split",
)


def add_evaluate_command(commands: Any) -> None:
    """Add `evaluate` to the parser's commands."""
    parser = add_command(
        commands,
        "evaluate",
        "score a trained run again, or any captioned images",
        [
            "microdit evaluate runs/first --samples 256 --metrics fd clip_score",
            "microdit evaluate config.yaml --images generated --json",
        ],
    )
    parser.add_argument("run", type=Path, help="a run's output folder; with --images also a complete config.yaml")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="score these images against the run's dataset; captions in prompts.json, metadata.jsonl, metadata.csv "
        "or a .txt file beside each",
    )
    parser.add_argument(
        "--samples", "--count", type=types.seed, metavar="N", help="images to generate (default: the run's)"
    )
    parser.add_argument("--guidance", type=types.finite, help="classifier-free guidance (default: the run's)")
    parser.add_argument("--seed", type=types.seed, help="seed of the evaluation noise")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="metrics to compute (default: the run's)")
    parser.add_argument(
        "--feature-net", help="network of fd, kid, precision, recall: efficientnet-lite0, inception-v3 or dinov2"
    )
    parser.add_argument("--feature-weights", metavar="FILE", help="its weights, or their URL")
    parser.add_argument(
        "--clip", help="network of clip_fd, clip_score, class_accuracy: builtin, an open_clip folder, MODEL/TAG"
    )
    parser.add_argument("--prompts", metavar="FILE", help="captions to sample: COCO's as .json, or text, one per line")
    parser.add_argument("--reference-count", type=types.count, metavar="N", help="number of real reference images")
    parser.add_argument("--reference-split", help="their split: train or val")
    parser.add_argument("--json", action="store_true", help="print only numbers, as JSON")
    parser.set_defaults(command=evaluate_command, loads_torch=True)


def evaluate_command(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        ConfigError: if options of sampling are given for existing images, or a setting is impossible.
    """
    import json

    from microdit.evaluation.report import describe
    from microdit.pipeline.evaluate import config_to_evaluate, evaluate_images, evaluate_run

    changes = {key: getattr(arguments, key) for key in (*SAMPLING_KEYS, *SCORING_KEYS)}
    changes = {key: value for key, value in changes.items() if value is not None}
    if arguments.images is not None and changes.keys() & set(SAMPLING_KEYS):
        raise ConfigError("--samples, --guidance and --prompts are for sampling; --images scores existing images")
    if "feature_net" in changes:
        changes = {"feature_weights": None} | changes  # the run's weights belong to another network
    if "metrics" in changes:
        changes["metrics"] = tuple(changes["metrics"])
    config = config_to_evaluate(arguments.run, changes)
    if arguments.images is not None:
        values = evaluate_images(arguments.images, config)
    else:
        values = evaluate_run(arguments.run, config)
    if is_main():  # only the main process has the scores
        print(json.dumps(values, indent=1) if arguments.json else describe(values, config.evaluation))

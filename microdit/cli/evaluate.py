"""`microdit evaluate`: score a trained run again, or any captioned images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from microdit.cli import arguments as types
from microdit.common.command_line import add_command
from microdit.common.errors import ConfigError
from microdit.common.process.distributed import is_main

FOR_DRAWING = ("samples", "guidance", "prompts")  # keys of `evaluation` that `evaluate` overrides
FOR_MEASURING = (
    "seed",
    "metrics",
    "feature_net",
    "feature_weights",
    "clip",
    "reference_count",
    "reference_split",
)


def add_evaluate_command(commands: Any) -> None:
    parser = add_command(
        commands,
        "evaluate",
        "score a trained run again, or any captioned images",
        [
            "microdit evaluate runs/first --samples 256 --metrics fd clip_score",
            "microdit evaluate config.yaml --images generated --json",
        ],
    )
    parser.add_argument("run", type=Path, help="a run's output folder; with --images a complete config.yaml will do")
    parser.add_argument(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="score these pictures against the run's dataset; captions in prompts.json, metadata.jsonl, metadata.csv "
        "or a .txt file beside each",
    )
    parser.add_argument("--samples", type=types.seed, help="how many pictures to draw (default: the run's own)")
    parser.add_argument("--guidance", type=types.finite, help="guidance instead of the run's own")
    parser.add_argument("--seed", type=types.seed, help="another evaluation noise")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="these instead of the run's own")
    parser.add_argument(
        "--feature-net", help="of fd, kid, precision, recall: efficientnet-lite0, inception-v3 or dinov2"
    )
    parser.add_argument("--feature-weights", metavar="FILE", help="its weights, or a URL to fetch them from")
    parser.add_argument(
        "--clip", help="of clip_fd, clip_score, class_accuracy: builtin, an open_clip folder, MODEL/TAG"
    )
    parser.add_argument("--prompts", metavar="FILE", help="draw these: COCO's captions as .json, or text, one a line")
    parser.add_argument("--reference-count", type=types.count, help="real pictures to compare with")
    parser.add_argument("--reference-split", help="whose: train or val")
    parser.add_argument("--json", action="store_true", help="numbers only, as JSON")
    parser.set_defaults(command=evaluate_command, loads_torch=True)


def evaluate_command(arguments: argparse.Namespace) -> None:
    import json

    from microdit.evaluation.report import describe
    from microdit.pipeline.evaluate import config_to_evaluate, evaluate_images, evaluate_run

    changes = {key: getattr(arguments, key) for key in (*FOR_DRAWING, *FOR_MEASURING)}
    changes = {key: value for key, value in changes.items() if value is not None}
    if arguments.images is not None and changes.keys() & set(FOR_DRAWING):
        raise ConfigError(
            "--samples, --guidance and --prompts are for drawing; --images scores the pictures that are there"
        )
    if "feature_net" in changes:
        changes = {"feature_weights": None} | changes  # the run's own belong to another network
    if "metrics" in changes:
        changes["metrics"] = tuple(changes["metrics"])
    config = config_to_evaluate(arguments.run, changes)
    if arguments.images is not None:
        values = evaluate_images(arguments.images, config)
    else:
        values = evaluate_run(arguments.run, config)
    if is_main():  # of several processes, it has the scores
        print(json.dumps(values, indent=1) if arguments.json else describe(values, config.evaluation))

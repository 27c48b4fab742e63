"""The `microdit` command: resolved configurations and files in, weights, pictures and scores out."""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from microdit.cli import arguments as types
from microdit.cli.data import add_data_commands, with_show
from microdit.common.errors import ConfigError, MicroditError
from microdit.common.files.atomic import file_trouble
from microdit.common.process.distributed import destroy_process_group, is_main, should_report_error
from microdit.common.process.terminal import safely
from microdit.common.process.waiting import waiting

if TYPE_CHECKING:
    from microdit.config.schema import Config

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


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 2 for an error of the user's, 130 when interrupted.

    Of several processes (torchrun), one prints the error.
    """
    return safely(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    arguments = _parsed(with_show(sys.argv[1:] if argv is None else argv))
    try:
        if arguments.command in NEED_TORCH:
            _load(arguments.command in (_train, _finetune))
        arguments.command(arguments)
    except MicroditError as error:
        if should_report_error():
            print(f"microdit: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that can't be written, a name that no file system takes
        if should_report_error():
            print(f"microdit: {file_trouble(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if should_report_error():
            print("microdit: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except Exception:
        if should_report_error():
            raise
        return 1
    destroy_process_group()
    return 0


def _load(first_line: bool) -> None:
    """Import PyTorch; a busy machine needs most of a minute for it."""
    if first_line and is_main() and "torch" not in sys.modules:
        print("loading PyTorch", file=sys.stderr, flush=True)
    atexit.register(gc.freeze)  # at exit, Python would collect all of PyTorch's objects, which takes seconds
    with waiting("PyTorch to load"):
        import microdit.pipeline.train_and_evaluate  # noqa: F401


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; key=value words may stand anywhere among a command's options, which argparse alone refuses."""
    parser = _parser()
    arguments, others = parser.parse_known_args(words)
    if others and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in others)):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if others:
        arguments.overrides += others
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="microdit", description="Micro-budget diffusion transformers: the core.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train and score one complete config.yaml")
    train.add_argument("config", type=Path, help="a complete configuration, as every run stores one")
    train.add_argument("--out", type=Path, help="output folder instead of the configuration's output_dir")
    train.set_defaults(command=_train)

    tune = commands.add_parser("finetune", help="go on from a finished run, on a folder of captioned pictures")
    tune.add_argument("run", type=Path, help="the folder of the run to start from; it stays as it is")
    tune.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="8 or more captioned pictures")
    tune.add_argument("--steps", type=types.count, help="optimiser steps (default 300)")
    tune.add_argument("--out", type=Path, required=True, help="folder of the new run")
    tune.add_argument("overrides", nargs="*", metavar="key=value", help="any setting, e.g. optimizer.lr=1e-4")
    tune.set_defaults(command=_finetune)

    sample = commands.add_parser("sample", help="draw captions with a trained run")
    sample.add_argument("run", type=Path, help="a run's output folder")
    sample.add_argument("captions", nargs="+", help="one picture row per caption")
    sample.add_argument("--out", type=Path, default=Path("samples.png"))
    sample.add_argument("--count", type=types.count, default=4, help="pictures per caption (default 4)")
    sample.add_argument("--seed", type=types.seed, default=0)
    sample.add_argument("--steps", type=types.count, help="sampler steps instead of the run's own")
    sample.add_argument("--guidance", type=types.finite, help="guidance instead of the run's own")
    sample.add_argument(
        "--guidance-by",
        choices=("caption", "path_drop"),
        help="what the weaker prediction lacks, instead of the run's own",
    )
    sample.add_argument(
        "--guidance-interval",
        type=types.level,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guidance only where LOW < sigma <= HIGH, instead of the run's own",
    )
    sample.set_defaults(command=_sample)

    _evaluate_options(commands.add_parser("evaluate", help="score a trained run again, or any captioned pictures"))

    add_data_commands(commands)

    load = commands.add_parser("import", help="convert a checkpoint of the paper's released model")
    load.add_argument("checkpoint", type=Path, help=".safetensors or .pt, plain or nested under 'dit.'")
    load.add_argument("--preset", default="MicroDiT_XL_2", help="architecture (default MicroDiT_XL_2)")
    load.add_argument("--config", type=Path, help="architecture as a YAML or JSON of model keys, instead of a preset")
    load.add_argument("--text", metavar="PATH", help="text encoder that it was trained on (default: the released one)")
    load.add_argument("--text-layer", choices=("last", "penultimate"), default="last", help="and its layer (last)")
    load.add_argument(
        "--autoencoder", metavar="PATH", help="of its latents (default: the released one of its channels)"
    )
    load.add_argument("--out", type=Path, required=True, help="folder for weights, model.yaml and config.yaml")
    load.set_defaults(command=_import)

    bench = commands.add_parser("bench", help="training speed of masking methods, as ratios in one process")
    bench.add_argument("--frechet", action="store_true", help="ways to a Fréchet distance on 2048 features instead")
    bench.add_argument("--config", type=Path, help="a complete configuration (default: the demo's sizes)")
    bench.add_argument("--steps", type=types.count, default=8)
    bench.set_defaults(command=_bench)
    return parser


def _evaluate_options(parser: argparse.ArgumentParser) -> None:
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
    parser.set_defaults(command=_evaluate)


def _train(arguments: argparse.Namespace) -> None:
    import dataclasses

    from microdit.config.schema import load_config

    config = load_config(arguments.config)
    if arguments.out is not None:
        config = dataclasses.replace(config, output_dir=str(arguments.out))
    _run(config)


def _finetune(arguments: argparse.Namespace) -> None:
    from microdit.pipeline.finetune import finetune_config, words_about

    config = finetune_config(arguments.run, arguments.data, arguments.out, arguments.steps, arguments.overrides)
    if is_main():
        print(words_about(config), file=sys.stderr)
    _run(config)
    if is_main():
        print(f'microdit sample {arguments.out} "a caption" draws with it')


def _run(config: Config) -> None:
    from microdit.pipeline.train_and_evaluate import run
    from microdit.training.graceful_stop import handle_stop_signals

    with handle_stop_signals() as stop:
        metrics = run(config, progress=True, stop=stop)
    if not is_main():
        return
    for name, value in metrics.items():
        print(f"{name:24s} {value:.6g}")
    print(f"weights, samples and metrics are in {config.output_dir}")


def _sample(arguments: argparse.Namespace) -> None:
    import dataclasses

    from microdit.common.files.text import check_characters
    from microdit.diffusion import GuidanceInterval
    from microdit.pipeline.generate import generate, grid, save_png
    from microdit.pipeline.pretrained import load_run

    for number, caption in enumerate(arguments.captions, 1):
        check_characters(caption, f"caption {number}", ConfigError)
    trained = load_run(arguments.run)
    keys = ("steps", "guidance", "guidance_by")
    changes = {key: getattr(arguments, key) for key in keys if getattr(arguments, key) is not None}
    if arguments.guidance_interval is not None:
        changes["guidance_interval"] = GuidanceInterval(*arguments.guidance_interval)
    sampler = dataclasses.replace(trained.config.sampler, **changes)
    dataclasses.replace(trained.config, sampler=sampler)  # refuses what doesn't go with the network
    features = trained.text_encoder.encode(arguments.captions).repeat_interleave(arguments.count, 0)
    pictures = generate(trained.denoiser, trained.autoencoder, features, sampler, arguments.seed)
    save_png(grid(pictures, arguments.count), arguments.out)
    print(f"{len(pictures)} pictures, a row per caption: {arguments.out}")


def _evaluate(arguments: argparse.Namespace) -> None:
    import json

    from microdit.evaluation.report import describe
    from microdit.pipeline.pretrained import evaluate_pictures, evaluate_run, load_config_with_overrides

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
    config = load_config_with_overrides(arguments.run, changes)
    if arguments.images is not None:
        values = evaluate_pictures(arguments.images, config)
    else:
        values = evaluate_run(arguments.run, config)
    if is_main():  # of several processes, it has the scores
        print(json.dumps(values, indent=1) if arguments.json else describe(values, config.evaluation))


def _import(arguments: argparse.Namespace) -> None:
    from microdit.encoders.text import TextConfig
    from microdit.encoders.text_record import RELEASED
    from microdit.pipeline.import_released import import_model

    text = TextConfig(arguments.text or RELEASED.path, arguments.text_layer)
    place = (arguments.checkpoint, arguments.out, arguments.preset, arguments.config)
    print(import_model(*place, text=text, autoencoder=arguments.autoencoder))


def _bench(arguments: argparse.Namespace) -> None:
    from frechet_trace import bench_frechet
    from masking_speed import bench_masking

    if arguments.frechet:
        print(bench_frechet())
        return
    print(bench_masking(arguments.config, arguments.steps))


NEED_TORCH = (_train, _finetune, _sample, _evaluate, _import, _bench)

if __name__ == "__main__":
    sys.exit(main())

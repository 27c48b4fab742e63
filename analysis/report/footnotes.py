"""What a reader must know to judge a study's table: how it was measured, what it leaves out, how to read it."""

from __future__ import annotations

import pandas as pd

from analysis import labels
from analysis.claims.paper_values import citation, paper_values, trust_meaning
from analysis.claims.selection import claims_of
from analysis.io.comparable_runs import NOT_RECORDED
from analysis.io.results import Results
from analysis.report.sentences import noise
from analysis.stats.intervals import number


def table_footnotes(results: Results) -> list[str]:
    """What a reader must know to judge the table."""
    study, frame = results.study, results.frame
    found = [
        "Mean ± half-width of Student's 95% interval over n seeds. A difference is the mean over seeds of arm minus "
        "baseline at the same seed, with its own 95% interval, not corrected; p is of Student's paired t test, with "
        "Holm's correction over the arms of the study. g_z: the mean difference in standard deviations of the "
        "differences, with Hedges' correction (there is none at two seeds). Bold: better than every other arm at "
        "corrected p < 0.05.",
        *_of_claims(results),
        *noise(results),
        *results.left_out,
        *measurement(results),
        *of_paper(results),
    ]
    holds = f" The arms hold {study.holds} fixed." if study.holds else ""
    software = [words for words in results.tags("versions") if words != NOT_RECORDED]
    hardware = "; ".join([results.tag("device"), *software])
    found.append(f"Hardware: {hardware}; seconds are wall-clock for training, on a machine that may be shared.{holds}")
    dirty = " with uncommitted changes" if "true" in set(frame["tag.git_dirty"]) else ""
    commits = ", ".join(dict.fromkeys(str(commit)[:10] for commit in frame["tag.git_commit"]))
    algorithm = f", algorithm {results.tag('algorithm')}" if results.tags("algorithm") != ["1"] else ""
    data = results.tag("data_fingerprint")[:16]
    found.append(f"Scale {study.scale}; code {commits}{dirty}{algorithm}; data {data}.")
    reused = int((frame["tag.reused_from"] != "").sum())
    if reused:
        found.append(f"{reused} of {len(frame)} runs were trained in an earlier launch and reused.")
    if results.absent:
        found.append(f"Without a result: {'; '.join(results.absent)}.")
    return found


def _of_claims(results: Results) -> list[str]:
    """How to read the verdicts."""
    found = claims_of(results.study.name)
    if not found:
        return []
    trust = "; ".join(f"{word}: {trust_meaning(word)}" for word in dict.fromkeys(claim.trust for claim in found))
    return [
        "A claim is reproduced where each of its checks is significant at 0.05 in its direction, contradicted where "
        "one is the other way (Holm-corrected); of several checks the one that decides is shown. Seeds needed: for 80% "
        "power of a paired t test at the effect and spread seen, which few seeds tell only roughly. Trust of a claim: "
        f"{trust}."
    ]


def of_paper(results: Results) -> list[str]:
    """The paper's own values, with how far each can be trusted."""
    paper = paper_values(results.study.name)
    if not paper:
        return []
    listed = "; ".join(f"{value.arm} {value}" for value in paper)
    words = ", ".join(f"{word}: {trust_meaning(word)}" for word in dict.fromkeys(v.trust for v in paper))
    return [
        f"The paper ({citation()}) reports FID on Inception features at its own scale, which compares with ours in "
        f"order only: {listed}. Trust: {words}."
    ]


def measurement(results: Results) -> list[str]:
    """Counts, networks and floors, and the warning that too few samples call for."""
    frame, net = results.frame, results.tag("feature_net")
    samples = results.tag("samples")
    reference = _mean(frame, "final/reference_images")
    against = "" if reference is None else f" against {reference:.0f} real images"
    networks = labels.networks(net)
    text = f"{samples} generated samples a run{against}; feature networks: {', '.join(networks)}."
    if samples == "0":
        text = "No pictures were drawn and scored."
    elif not networks[0].lower().startswith("inception"):
        text += " FD (Fréchet) and KD (kernel distance) are on the first one's features and are not FID and KID."
    if "+prompts@" in net:
        text += " Prompts come from a file, not from the dataset's held-out captions."
    found = [text]
    floors = []
    for metric in labels.scores(frame.columns, results.study.primary):
        floor = _mean(frame, f"final/{metric}_floor")
        if floor is not None:
            floors.append(f"{labels.metric_label(metric, net)} {number(floor)}")
        real = _mean(frame, f"final/{metric}_real")
        if real is not None:
            found.append(f"Real images have {labels.metric_label(metric, net)} {number(real)}.")
    if "val_loss" in labels.scores(frame.columns, results.study.primary):
        found.append(
            "Validation loss: of the averaged weights, unmasked, on held-out images, with the same images, noise and "
            "noise levels in every run; it compares arms of the same latents and diffusion settings."
        )
    if floors:
        found.insert(1, f"Floor, between two sets of real images of these sizes: {', '.join(floors)}.")
    width = labels.feature_width(networks[0])
    if width and samples.isdigit() and int(samples) < width:
        found.append(
            f"Fewer samples ({samples}) than features ({width}): the covariance of {networks[0]}'s features is "
            f"singular, so {labels.metric_label('fd', net)} is biased upwards; compare it between arms and with its "
            "floor, not with other reports."
        )
    return found


def _mean(frame: pd.DataFrame, column: str) -> float | None:
    return float(frame[column].mean()) if column in frame and frame[column].notna().any() else None

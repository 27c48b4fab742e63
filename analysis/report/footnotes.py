"""Write footnotes of a study's table: how to read it, and how it was measured."""

from __future__ import annotations

from analysis import labels
from analysis.claims.paper_values import citation, paper_values, trust_meaning
from analysis.claims.selection import claims_of
from analysis.io.columns import mean_or_none, tag_column
from analysis.io.comparable_runs import NOT_RECORDED
from analysis.io.results import Results
from analysis.report.sentences import evaluation_noise
from microdit.common.contract import FINAL_VAL_LOSS, FLOOR_SUFFIX, REAL_SUFFIX, REFERENCE_IMAGES, Tag, final_metric
from microdit.common.numbers import format_number


def table_footnotes(results: Results) -> list[str]:
    """Return all footnotes of a study's table."""
    study, frame = results.study, results.frame
    found = [
        "Mean ± half-width of Student's 95% interval over n seeds. A difference is arm minus baseline at the same "
        "seed, averaged over seeds; its 95% interval is not corrected for the number of arms. p: Student's paired t "
        "test with Holm's correction over the arms of the study. g_z: the mean difference in standard deviations of "
        "the differences, with Hedges' correction (undefined at two seeds). Bold: better than every other arm at "
        "corrected p < 0.05.",
        *_of_claims(results),
        *evaluation_noise(results),
        *results.left_out,
        *measurement(results),
        *of_paper(results),
    ]
    holds = f" The arms hold {study.holds} fixed." if study.holds else ""
    software = [words for words in results.tags(Tag.VERSIONS) if words != NOT_RECORDED]
    hardware = "; ".join([results.tag(Tag.DEVICE), *software])
    found.append(f"Hardware: {hardware}; seconds are wall-clock training time, possibly on a shared machine.{holds}")
    dirty = " with uncommitted changes" if "true" in set(frame[tag_column(Tag.GIT_DIRTY)]) else ""
    commits = ", ".join(dict.fromkeys(str(commit)[:10] for commit in frame[tag_column(Tag.GIT_COMMIT)]))
    algorithm = f", algorithm {results.tag(Tag.ALGORITHM)}" if results.tags(Tag.ALGORITHM) != ["1"] else ""
    data = results.tag(Tag.DATA_FINGERPRINT)[:16]
    found.append(f"Scale {study.scale}; code {commits}{dirty}{algorithm}; data {data}.")
    reused = int((frame[tag_column(Tag.REUSED_FROM)] != "").sum())
    if reused:
        found.append(f"{reused} of {len(frame)} runs are reused from an earlier launch.")
    if results.absent:
        found.append(f"Without a result: {'; '.join(results.absent)}.")
    return found


def _of_claims(results: Results) -> list[str]:
    """Return how to read the verdicts."""
    found = claims_of(results.study)
    if not found:
        return []
    levels = dict.fromkeys(claim.trust for claim in found if claim.trust)
    trust = "; ".join(f"{word}: {trust_meaning(word)}" for word in levels)
    about_trust = f" Trust levels of claims: {trust}." if trust else ""
    return [
        "A claim is reproduced if each of its checks is significant at 0.05 in its direction, and contradicted if one "
        "is significant in the other direction (Holm-corrected). If there are several checks, the decisive one is "
        "shown. 'Seeds needed' assumes 80% power of a paired t test and the observed effect and variance; with few "
        f"seeds it is a rough estimate.{about_trust}"
    ]


def of_paper(results: Results) -> list[str]:
    """Return the values that the paper reports, with their trust levels."""
    paper = paper_values(results.study.name)
    if not paper:
        return []
    listed = "; ".join(f"{value.arm} {value}" for value in paper)
    words = ", ".join(f"{word}: {trust_meaning(word)}" for word in dict.fromkeys(v.trust for v in paper))
    return [
        f"The paper ({citation()}) reports FID on Inception features at its own scale; compare only the order of the "
        f"arms with ours: {listed}. Trust levels: {words}."
    ]


def measurement(results: Results) -> list[str]:
    """Return how the scores were measured: counts, networks, floors, and warnings."""
    frame, net = results.frame, results.tag(Tag.FEATURE_NET)
    samples = results.tag(Tag.SAMPLES)
    reference = mean_or_none(frame, final_metric(REFERENCE_IMAGES))
    against = "" if reference is None else f" against {reference:.0f} real images"
    networks = labels.networks(net)
    text = f"{samples} generated samples per run{against}; feature networks: {', '.join(networks)}."
    if samples == "0":
        text = "No samples were drawn and scored."
    elif not networks[0].lower().startswith("inception"):
        text += (
            " FD (Fréchet distance) and KD (kernel distance) use features of the first one; they are not FID and KID."
        )
    if "+prompts@" in net:
        text += " The prompts come from a file, not from the dataset's held-out captions."
    found = [text]
    floors = []
    for metric in results.scores:
        floor = mean_or_none(frame, final_metric(metric + FLOOR_SUFFIX))
        if floor is not None:
            floors.append(f"{results.label(metric)} {format_number(floor)}")
        real = mean_or_none(frame, final_metric(metric + REAL_SUFFIX))
        if real is not None:
            found.append(f"Real images have {results.label(metric)} {format_number(real)}.")
    if FINAL_VAL_LOSS in results.scores:
        found.append(
            "Validation loss: of the averaged weights, unmasked, on held-out images, with the same images, diffusion "
            "noise and noise levels in every run. Compare only arms with the same latents and diffusion settings."
        )
    if floors:
        found.insert(1, f"Floor (two sets of real images of these sizes): {', '.join(floors)}.")
    width = labels.feature_width(networks[0])
    if width and samples.isdigit() and int(samples) < width:
        found.append(
            f"Fewer samples ({samples}) than features ({width}): the covariance of {networks[0]}'s features is "
            f"singular, so {results.label('fd')} is biased upwards; compare it between arms and with its "
            "floor, not with other reports."
        )
    return found

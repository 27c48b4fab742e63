"""Scores of generated images: distances to real ones and agreement with captions."""

from microdit.evaluation.config import EvalConfig
from microdit.evaluation.image_folder import evaluate_folder
from microdit.evaluation.report import check_scoring, describe, feature_net_name
from microdit.evaluation.score import clip_score, score

__all__ = ["EvalConfig", "check_scoring", "clip_score", "describe", "evaluate_folder", "feature_net_name", "score"]

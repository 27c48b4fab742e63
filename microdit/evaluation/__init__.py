"""Scores of generated images: distances to real ones and agreement with captions."""

from microdit.evaluation.config import EvalConfig
from microdit.evaluation.folder import evaluate_folder
from microdit.evaluation.scores import clip_score, describe, feature_net_name, score

__all__ = ["EvalConfig", "clip_score", "describe", "evaluate_folder", "feature_net_name", "score"]

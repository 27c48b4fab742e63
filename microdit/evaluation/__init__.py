"""Scores of generated images: distances to real ones and agreement with captions."""

from microdit.evaluation.config import EvalConfig
from microdit.evaluation.scores import clip_score, feature_net_name, score

__all__ = ["EvalConfig", "clip_score", "feature_net_name", "score"]

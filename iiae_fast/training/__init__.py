"""Training that can be broken off at any moment, and evaluation of what came out."""

from __future__ import annotations

from iiae_fast.training.evaluation import Codes, encode, evaluate
from iiae_fast.training.profiling import Profile, profile
from iiae_fast.training.run import TrainingResult
from iiae_fast.training.trainer import train

__all__ = ["Codes", "Profile", "TrainingResult", "encode", "evaluate", "profile", "train"]

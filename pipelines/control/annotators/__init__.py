"""Preprocessors at work: a picture in, what a ControlNet follows out."""

from pipelines.control.annotators.table import preprocess

__all__ = ["preprocess"]

"""The main job: stages of steps as data, and what runs them."""

from aegis.pipeline.job import run_pipeline

__all__ = ["run_pipeline"]

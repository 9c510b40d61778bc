"""The main job."""

from aegis.pipeline.job import run_pipeline

__all__ = ["run_pipeline"]

"""Views of images on their own device, by solo-learn's `augmentations` (docs/views.md)."""

from solo_infoaug.views.pipeline import Pipeline, build_pipeline, make_views, run_pipelines

__all__ = ["Pipeline", "build_pipeline", "make_views", "run_pipelines"]

"""Views of images on their own device, by solo-learn's `augmentations` (docs/views.md)."""

from solo_infoaug.views.pipeline import Pipeline as Pipeline
from solo_infoaug.views.pipeline import build_pipeline as build_pipeline
from solo_infoaug.views.pipeline import make_views as make_views
from solo_infoaug.views.pipeline import run_pipelines as run_pipelines

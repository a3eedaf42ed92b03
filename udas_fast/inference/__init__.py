"""A trained model and what is done with it: label images."""

from udas_fast.inference.files import image_files, predict_files
from udas_fast.inference.model import MODEL_FILE, TrainedModel, check_state

__all__ = ["MODEL_FILE", "TrainedModel", "check_state", "image_files", "predict_files"]

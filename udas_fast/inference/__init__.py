"""Trained models: loading, prediction on images and videos, export."""

from udas_fast.inference.export import Agreement, export_model
from udas_fast.inference.files import PredictedFiles, media_files, predict_files
from udas_fast.inference.model import BEST_FILE, MODEL_FILE, TrainedModel, check_state
from udas_fast.inference.onnx_file import load_onnx
from udas_fast.inference.outputs import PICTURES, DatasetFolder, Output, Pictures, Table

__all__ = [
    "BEST_FILE",
    "MODEL_FILE",
    "PICTURES",
    "Agreement",
    "DatasetFolder",
    "Output",
    "Pictures",
    "PredictedFiles",
    "Table",
    "TrainedModel",
    "check_state",
    "export_model",
    "load",
    "load_onnx",
    "media_files",
    "predict_files",
]

#: ``udas_fast.load``: read the trained model of a run.
load = TrainedModel.load

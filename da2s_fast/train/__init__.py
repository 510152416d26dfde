"""After the search: training from scratch, evaluation, prediction, export."""

from da2s_fast.train.counts import count_multiply_adds, count_parameters
from da2s_fast.train.evaluate import Evaluation, evaluate
from da2s_fast.train.export import export_onnx, export_torch
from da2s_fast.train.model_file import ModelInfo, load_model, save_model
from da2s_fast.train.predict import Prediction, predict
from da2s_fast.train.retrain import RetrainResult, resume_retraining, retrain
from da2s_fast.train.run_settings import read_genotype
from da2s_fast.train.settings import RetrainSettings, recipe
from da2s_fast.train.size import derived_size

__all__ = [
    "Evaluation",
    "ModelInfo",
    "Prediction",
    "RetrainResult",
    "RetrainSettings",
    "count_multiply_adds",
    "count_parameters",
    "derived_size",
    "evaluate",
    "export_onnx",
    "export_torch",
    "load_model",
    "predict",
    "read_genotype",
    "recipe",
    "resume_retraining",
    "retrain",
    "save_model",
]

"""Exact and fast differentiable architecture search: search, cut and retrain image classifiers."""

"""Debiasing of a model's inputs and outputs, whatever the predictor: stain, level of sections, depth."""

"""Uncertainty of predictions: held-out predictions of training spots, intervals, out-of-distribution spots."""

"""Scores of predictions within sections."""

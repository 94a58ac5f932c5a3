"""Leaks between the groups of a split."""

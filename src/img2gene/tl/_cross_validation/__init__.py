"""Cross-validation: candidates, folds, tasks, checkpoints and results."""

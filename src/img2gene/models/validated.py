"""What fits of networks share that are validated on parts of their training data: stages, scores, weights of candidates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import torch

from img2gene.metrics import pearson
from img2gene.models.linear import centre
from img2gene.models.resume import Progress
from img2gene.models.stacking import stack_weights
from img2gene.models.training import Run, Schedule, Task, train

_SCORED_GENES = 500
_EPOCHS = (12, 150)
_VALIDATIONS = 25
_MOST_WEIGHT = 1.5


def train_stage(name: str, task: Task, schedule: Schedule, progress: Progress) -> Run:
    """Train, or take up what was finished before under this name."""
    done = progress.load(name)
    if done is not None:
        facts, arrays = done
        task.ensemble.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
        task.ensemble.eval()
        return Run(**facts)
    run = train(task, schedule, folder=progress.part(name), label=name)
    progress.save(
        name, dataclasses.asdict(run), {key: value.numpy() for key, value in task.ensemble.state_dict().items()}
    )
    return run


def epochs_for(n_batches: int, n_steps: int) -> int:
    """Epochs of ``n_batches`` that make about ``n_steps`` steps of the optimiser."""
    return int(np.clip(math.ceil(n_steps / n_batches), *_EPOCHS))


def validate_every(max_epochs: int) -> int:
    """Epochs between validations."""
    return max(max_epochs // _VALIDATIONS, 1)


def scored_genes(labels: np.ndarray) -> np.ndarray:
    """Columns of the genes that epochs are chosen by: those of the highest mean label."""
    return np.argsort(-labels.mean(axis=0), kind="stable")[:_SCORED_GENES]


def mean_correlation(labels: np.ndarray, predicted: np.ndarray, sections: np.ndarray) -> float:
    """Mean over genes and sections of the correlation within sections; 0 where none is defined."""
    known = np.concatenate([pearson(labels[sections == s], predicted[sections == s]) for s in np.unique(sections)])
    return float(np.nanmean(known)) if np.isfinite(known).any() else 0.0


def weigh(candidates: Mapping[str, np.ndarray | None], labels: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Weights of held-out predictions (n, G), all centred in ``sections`` here; candidates that are None get 0."""
    known = {name: centre(values, sections) for name, values in candidates.items() if values is not None}
    truth = centre(labels, sections)
    found = dict(zip(known, stack_weights([*known.values()], truth, truth.var(axis=0)), strict=True))
    weights = np.array([found.get(name, 0.0) for name in candidates])
    # Networks that were stopped at once predict next to nothing, which weights must not blow up.
    return weights * min(1, _MOST_WEIGHT / max(weights.sum(), 1e-12))


def resolve_accelerator(accelerator: str, devices: int | str) -> tuple[str, int | str]:
    """The accelerator asked for; ``"auto"`` takes the device of the settings."""
    from img2gene.encoders.base import resolve_device

    if accelerator != "auto":
        return accelerator, devices
    kind = resolve_device(None).split(":")[0]
    return {"cuda": "gpu"}.get(kind, kind), devices

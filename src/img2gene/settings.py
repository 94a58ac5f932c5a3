"""Package-wide defaults; a keyword argument of a call overrides them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _default_cache() -> Path:
    """Return the package's folder in the user's cache, as the XDG standard places it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "img2gene"


@dataclass
class Settings:
    """Defaults used where a function's argument is None.

    Attributes
    ----------
    device
        Torch device for encoders and networks; ``"auto"`` takes CUDA, then MPS, then the CPU.
    batch_size
        Spots per forward pass of an encoder; 8 is fastest on CPUs and keeps memory low, GPUs gain from more.
    num_workers
        Threads that decode image chunks ahead of the encoder; 0 decodes in the calling thread.
    amp
        Use bfloat16 for encoders: ``"auto"`` where the processor computes in it natively.
    progress
        Show progress bars.
    seed
        Seed of every call whose ``seed`` is None.
    cache_dir
        Folder for downloads.

    Examples
    --------
    >>> import img2gene as ig
    >>> ig.settings.progress = False
    """

    device: str = "auto"
    batch_size: int = 8
    num_workers: int = 1
    amp: bool | str = "auto"
    progress: bool = True
    seed: int = 0
    cache_dir: Path = field(default_factory=_default_cache)


settings = Settings()

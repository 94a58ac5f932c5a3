"""Package-wide defaults; a keyword argument of a call overrides them."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

# More threads than this only use memory.
_MOST_WORKERS = 256
_NO_DEFAULT = object()


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
        Torch device for encoders and networks; ``"auto"`` takes CUDA, then MPS, then the CPU. One that this computer does not
        have is refused when it is set.
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
        Folder for downloads. Once you set it, :func:`img2gene.pp.embed_patches` also keeps embeddings there, by the pixels
        of each patch and the revision of the encoder, and never encodes a patch twice. None takes the folder of the start
        again, in the user's cache, where downloads are kept and embeddings are not.

    Raises
    ------
    Img2GeneError
        No such setting, or a value that it cannot have.

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

    def __setattr__(self, name: str, value: Any) -> None:
        """Convert and check a value; a misspelt setting is refused."""
        # Defaults are set when the package is imported, which must not wait for numpy.
        if name == "cache_dir" and value is None:
            value = _default_cache()
        default = _default_cache() if name == "cache_dir" else getattr(type(self), name, _NO_DEFAULT)
        is_default = type(value) is type(default) and value == default
        super().__setattr__(name, value if is_default else _checked(name, value))

    @property
    def caches_embeddings(self) -> bool:
        """Whether embeddings are kept in :attr:`cache_dir`: once it is set, because they take gigabytes."""
        return self.cache_dir != _default_cache()


def _checked(name: str, value: Any) -> Any:
    """Convert the value of a setting."""
    from img2gene._checks import Arguments, shown
    from img2gene._errors import near

    check = Arguments()
    known = [entry.name for entry in fields(Settings)]
    match name:
        case "device":
            value = value if isinstance(value, str) and value == "auto" else check.device(name, value, optional=False)
        case "batch_size":
            value = check.whole(name, value, 1)
        case "num_workers":
            value = check.whole(name, value, 0, _MOST_WORKERS)
        case "amp":
            if not (isinstance(value, str) and value == "auto") and not isinstance(value, bool):
                check.messages.append(f'amp={shown(value)}: expected "auto", True or False.')
        case "progress":
            value = check.flag(name, value)
        case "seed":
            value = check.seed(name, value)
        case "cache_dir":
            value = check.path(name, value)
            if isinstance(value, Path):
                # The folder stays the same when the working directory changes, and in the workers of a cluster.
                value = value.absolute()
                if value.exists() and not value.is_dir():
                    check.messages.append(
                        f"cache_dir={shown(value)} is a file; expected a folder, which need not exist yet."
                    )
        case _:
            check.messages.append(f"`img2gene.settings` has no `{name}` ({near(name, known)}).")
    check.raise_all()
    return value


settings = Settings()


def tqdm_bar(*args: Any, **options: Any) -> Any:
    """Make a progress bar of tqdm, without its advice to install ipywidgets."""
    with warnings.catch_warnings():
        # Given at the first import in a notebook: https://github.com/tqdm/tqdm/blob/master/tqdm/auto.py
        warnings.filterwarnings("ignore", "IProgress not found")
        from tqdm.auto import tqdm
    return tqdm(*args, **options)

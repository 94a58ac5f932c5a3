"""Progress bars, as widgets in a notebook that has them and as text elsewhere."""

from __future__ import annotations

import warnings
from typing import Any


def tqdm_bar(*args: Any, **options: Any) -> Any:
    """Make a progress bar of tqdm, without its advice to install ipywidgets."""
    with warnings.catch_warnings():
        # Given at the first import in a notebook: https://github.com/tqdm/tqdm/blob/master/tqdm/auto.py
        warnings.filterwarnings("ignore", "IProgress not found")
        from tqdm.auto import tqdm
    return tqdm(*args, **options)

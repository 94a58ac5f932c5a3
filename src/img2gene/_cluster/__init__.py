"""Share work between the workers of a dask cluster."""

from img2gene._cluster.client import check_client, n_threads, run_parts

__all__ = ["check_client", "n_threads", "run_parts"]

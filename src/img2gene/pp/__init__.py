"""Prepare a study: patches, embeddings, gene panels, tiles, pseudo-spots."""

from img2gene.pp.bins import bin_to
from img2gene.pp.embedding import embed_patches
from img2gene.pp.expression import select_genes
from img2gene.pp.features import describe_features
from img2gene.pp.patches import extract_patches
from img2gene.pp.pathways import score_pathways
from img2gene.pp.stain import fit_stain, normalize_stain
from img2gene.pp.tiles import tile_slide

__all__ = [
    "bin_to",
    "describe_features",
    "embed_patches",
    "extract_patches",
    "fit_stain",
    "normalize_stain",
    "score_pathways",
    "select_genes",
    "tile_slide",
]

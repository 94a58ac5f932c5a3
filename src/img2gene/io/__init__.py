"""Read sections, join them, and store and load trained models."""

from img2gene._files.tables import read_csv
from img2gene.io._concat import concat_sections
from img2gene.io.cards import model_card
from img2gene.io.convert import from_anndata, to_anndata
from img2gene.io.cosmx import read_cosmx
from img2gene.io.hest_sections import read_hest
from img2gene.io.legacy_st import read_legacy_st
from img2gene.io.merscope import read_merscope
from img2gene.io.model_store import load_model, save_model
from img2gene.io.sections import build_section
from img2gene.io.slides import read_slide
from img2gene.io.study_store import write_study
from img2gene.io.table_store import open_table
from img2gene.io.visium import read_visium
from img2gene.io.visium_hd import read_visium_hd
from img2gene.io.xenium import read_xenium

__all__ = [
    "build_section",
    "concat_sections",
    "from_anndata",
    "load_model",
    "model_card",
    "open_table",
    "read_cosmx",
    "read_csv",
    "read_hest",
    "read_legacy_st",
    "read_merscope",
    "read_slide",
    "read_visium",
    "read_visium_hd",
    "read_xenium",
    "save_model",
    "to_anndata",
    "write_study",
]

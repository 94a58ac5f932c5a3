"""Human gene symbols, grouped by what drives their expression in :func:`img2gene.datasets.synthetic_cohort`."""

from __future__ import annotations

from itertools import chain, zip_longest

DOMAINS = ("tumour", "stroma", "immune", "adipose", "epithelium", "necrosis")

# Real symbols, so that gene sets and pathway methods work on the synthetic cohort.
_GROUPS = {
    "tumour": """
        ERBB2 KRT8 KRT18 EPCAM GRB7 KRT19 CDH1 MUC1 GATA3 XBP1 ESR1 FOXA1 TFF1 TFF3 AGR2 CLDN3 CLDN4 CLDN7 ELF3 SPDEF
        TACSTD2 CD24 MIEN1 STARD3 KRT7 PGAP3 CEACAM6 S100A14 ESRP1 RAB25 CRABP2 AZGP1
    """,
    "stroma": """
        COL1A1 COL3A1 FN1 DCN LUM COL1A2 COL5A1 COL5A2 COL6A1 COL6A3 POSTN SPARC VIM FBLN1 THY1 ACTA2 TAGLN FAP PDGFRB
        PDGFRA BGN THBS2 MMP2 MMP14 AEBP1 CTSK ASPN FSTL1 VCAN SFRP2 COL12A1 ELN
    """,
    "immune": """
        CD3D CD3E PTPRC MS4A1 CD79A IGKC CD3G CD2 CD8A CD4 CD79B CD19 IGHG1 IGHM JCHAIN MZB1 TRAC LTB CCL5 CCL19 CXCL13
        CCR7 IL7R SELL GZMK GZMB NKG7 CD68 CD74 HLA-DRA CD52 CORO1A LCK BANK1 CXCR5 CXCR4
    """,
    "adipose": """
        ADIPOQ PLIN1 FABP4 PLIN4 LEP LPL CIDEC CIDEA CD36 LIPE GPD1 PNPLA2 ADH1B PPARG AQP7 TIMP4 DGAT2 SAA1 CFD LEPR
        RBP4 ACACB
    """,
    "epithelium": """
        KRT5 KRT14 KRT17 KRT15 TP63 MYLK OXTR LTF PIGR KIT ELF5 SLPI KRT23 MMP7 SAA2 PROM1 SCGB2A2 SCGB1D2 WFDC2 DSC3
        COL17A1 SOX10
    """,
    "necrosis": """
        S100A8 S100A9 CXCL8 IL1B FCGR3B SOD2 PLAUR HMOX1 TREM1 OSM CXCL1 CXCL2 CCL20 MMP9 LCN2 IL6 PTGS2 BCL2A1
    """,
    "hypoxia": """
        CA9 VEGFA SLC2A1 LDHA PGK1 ENO1 ALDOA HK2 PFKFB3 PFKFB4 BNIP3 BNIP3L NDRG1 ADM ANKRD37 EGLN3 P4HA1 PDK1 KDM3A
        ANGPTL4 DDIT4 EGLN1 SERPINE1 MXI1 TPI1
    """,
    "proliferation": """
        MKI67 TOP2A CCNB1 CCNB2 CDK1 BIRC5 PCNA MCM2 MCM3 MCM5 MCM6 TYMS RRM2 UBE2C AURKA AURKB PLK1 BUB1 CENPF TPX2
        CCNA2 FOXM1
    """,
    "housekeeping": """
        ACTB GAPDH B2M RPL3 RPS3 EEF1A1 RPL5 RPL7 RPL8 RPL10 RPL13 RPL15 RPL19 RPL30 RPL32 RPLP0 RPS2 RPS4X RPS6 RPS8
        RPS12 RPS18 RPS27A RPSA TPT1 UBC UBB PPIA HSP90AB1 TUBA1B YWHAZ TBP HPRT1 SDHA PSMB4 PSMB2 VCP SNRPD3 EMC7 GPI
        RAB7A REEP5 CHMP2A C1orf43
    """,
    "noise": """
        ZNF24 ZNF91 ZNF143 ZNF207 ZNF266 ZNF410 TMEM59 TMEM41B TMEM87A TMEM127 ATG5 ATG7 COG3 COG4 DDX18 DDX47 EXOC5
        FBXO11 FBXW7 GTF2B INTS6 KLHL12 LSM14A MED14 MED23 NUP54 NUP155 PIGK POLR2H POLR3C PPP4R2 RBM15 RNF14 SLC35A5
        SMAD5 SNX13 TAF9 THOC1 TRAPPC2L UBA3 USP15 VPS26A WDR5 XPOT ZC3H15
    """,
}


def _round_robin() -> tuple[tuple[str, str], ...]:
    """Take one gene of every group in turn."""
    # The first n genes then have markers of every domain, for any n of at least ten.
    columns = ([(symbol, group) for symbol in text.split()] for group, text in _GROUPS.items())
    return tuple(pair for pair in chain.from_iterable(zip_longest(*columns)) if pair is not None)


GENES = _round_robin()
SYMBOLS = tuple(symbol for symbol, _ in GENES)
GROUPS = tuple(group for _, group in GENES)

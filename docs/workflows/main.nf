// From raw data to scores, a report and a model card:
//
//   nextflow run main.nf --source "visium /runs/A /runs/B /runs/C --patient P1 --patient P2 --patient P3" --held_out P3
//
// Paths are absolute, because every process runs in a folder of its own.
// Without parameters, it runs on a synthetic cohort.
params.source = 'synthetic --set n_patients=3 --set n_sections=1 --set n_spots=60'
params.encoder = 'default'
params.model = 'ridge'
params.held_out = 'P3'
params.outdir = 'results'

process READ {
    output:
    path 'study.zarr'

    script:
    """
    img2gene --quiet read ${params.source} --out study.zarr
    """
}

process EMBED {
    input:
    path study

    output:
    path 'embedded.zarr'

    script:
    """
    img2gene --quiet embed ${study} --encoder ${params.encoder} --out embedded.zarr
    """
}

process FIT {
    publishDir params.outdir

    input:
    path study

    output:
    path 'model.img2gene'

    script:
    """
    img2gene --quiet fit ${study} --model ${params.model} --validate-on ${params.held_out} --out model.img2gene
    """
}

process PREDICT {
    publishDir params.outdir

    input:
    path study
    path model

    output:
    path 'predicted.zarr'

    script:
    """
    img2gene --quiet predict ${study} --model ${model} --out predicted.zarr
    """
}

process JUDGE {
    publishDir params.outdir

    input:
    path study
    path model

    output:
    path 'scores.csv'
    path 'report.html'
    path 'card.md'

    script:
    """
    img2gene --quiet evaluate ${study} --model ${model} --out scores.csv
    img2gene --quiet report ${study} --model ${model} --out report.html
    img2gene --quiet card ${model} --scores scores.csv --out card.md
    """
}

workflow {
    embedded = EMBED(READ())
    model = FIT(embedded)
    predicted = PREDICT(embedded, model)
    JUDGE(predicted, model)
}

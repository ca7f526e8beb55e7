"""`featkit whiten`: PCA-whitening fitted to embeddings, for `featkit export --whiten`."""

from pathlib import Path

from featkit.cli.console import print_json, stdout
from featkit.errors import InputError
from featkit.wording import counted


def whiten(embeddings: Path, /, *, dim: int = 128, out: Path, json_: bool = False) -> None:
    """Fit PCA-whitening to EMBEDDINGS: shorter vectors, in which no direction outweighs the others.

    Export the model again with the statistics, and embed anew: the graph then gives the whitened
    vectors itself.

    Example: featkit whiten emb/ --dim 128 --out stats.npz

    Parameters
    ----------
    embeddings
        An embeddings folder of `featkit embed`; a few thousand images like those to be searched.
    dim
        Numbers of a whitened vector.
    out
        The file of statistics to write.
    json_
        Print the figures as JSON.
    """
    from featkit.embeddings import Embeddings, vectors_of
    from featkit.modelfile import read_manifest
    from featkit.whitening import fit_whitening

    folder = Embeddings.open(embeddings)
    manifest = read_manifest(folder.model_path)
    if manifest.whitened:
        raise InputError(
            f"{embeddings} was embedded by a model that whitens already; embed with {manifest.name}"
            " exported without --whiten."
        )
    tables = (table.filter(table["embedding"].is_valid()) for table in folder.tables(["embedding"]))
    whitening = fit_whitening(
        (vectors_of(table) for table in tables if table.num_rows), dim=dim, model=manifest.made_of
    )
    whitening.save(out)
    if json_:
        facts = {
            "out": str(out),
            "dim": dim,
            "num_vectors": whitening.num_vectors,
            "explained": whitening.explained,
        }
        print_json(facts)
        return
    stdout().print(
        f"{out}: {folder.plan.width} to {counted(dim, 'number')}, "
        f"fitted to {counted(whitening.num_vectors, 'vector')} of {manifest.name}; "
        f"{whitening.explained:.1%} of their variance is kept."
    )
    stdout().print(
        f"Next: repeat the export of {manifest.name} with --whiten {out}, and embed with the new"
        " file."
    )

"""`featkit whiten`: fit PCA whitening to embeddings, for `featkit export --whiten`."""

from pathlib import Path

from featkit.cli.console import print_json, stdout
from featkit.cli.options import AsJson
from featkit.errors import InputError
from featkit.wording import counted


def whiten(
    embeddings: Path,
    /,
    *,
    dim: int = 128,
    power: float = 1.0,
    out: Path,
    json_: AsJson = False,
) -> None:
    """Fit PCA whitening to EMBEDDINGS, for shorter vectors with equal variance in every direction.

    Then export the model again with `--whiten` and embed your images with the new file: its graph
    includes the whitening. `featkit export --whiten-on IMAGES` does all of this in one command.

    Example: featkit whiten emb/ --dim 128 --out stats.npz

    Parameters
    ----------
    embeddings
        A folder from `featkit embed`, of a few thousand images like those you will search.
    dim
        The number of dimensions of a whitened vector.
    power
        How far the variances are made equal, from 0 to 1: a direction of variance v is multiplied
        by v ** (-power / 2). 1 whitens; 0 only rotates and shortens; less than 1 amplifies the
        noise in directions of little variance less.
    out
        The statistics file to write, such as stats.npz.
    """
    from featkit.embeddings import Embeddings, vectors_of
    from featkit.modelfile import read_manifest
    from featkit.whitening import check_power, fit_whitening

    check_power(power)
    folder = Embeddings.open(embeddings)
    manifest = read_manifest(folder.model_path)
    if manifest.whitened:
        raise InputError(
            f"{embeddings} was embedded by a model that already whitens; embed with {manifest.name}"
            " exported without --whiten."
        )
    tables = (table.filter(table["embedding"].is_valid()) for table in folder.tables(["embedding"]))
    whitening = fit_whitening(
        (vectors_of(table) for table in tables if table.num_rows),
        dim=dim,
        model=manifest.made_of,
        power=power,
    )
    whitening.save(out)
    if json_:
        facts = {
            "out": str(out),
            "dim": dim,
            "power": power,
            "num_vectors": whitening.num_vectors,
            "explained": whitening.explained,
        }
        print_json(facts)
        return
    stdout().print(
        f"Wrote {out}: from {folder.plan.width} to {counted(dim, 'dimension')}, "
        f"fitted to {counted(whitening.num_vectors, 'vector')} of {manifest.name}, "
        f"keeping {whitening.explained:.1%} of their variance."
    )
    stdout().print(
        f"Next: export {manifest.name} again with --whiten {out}, and embed with the new file."
    )

"""`featkit inspect`: describe a file or folder that featkit wrote."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featkit.cli.console import print_json, print_table
from featkit.cli.options import AsJson
from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.folders import is_embeddings, is_index, is_run

if TYPE_CHECKING:
    from featkit.index import Index


def inspect(path: Path, /, *, json_: AsJson = False) -> None:
    """Describe PATH: a model file, a run folder, an embeddings folder, an index or API keys.

    For a model file, this also prints a script that runs it without featkit.

    Example: featkit inspect photos.index

    Parameters
    ----------
    path
        A file or folder that featkit wrote.
    """
    kind, facts = look(path)
    if json_:
        print_json({"kind": kind, "path": str(path), **facts})
        return
    example = facts.pop("example", None)
    print_table(
        f"{path}: {kind}", ("", ""), [(name, _shown(value)) for name, value in facts.items()]
    )
    if example is not None:
        print(
            "\nCompute the vector of photo.jpg with onnxruntime, numpy and Pillow only:"
            f"\n\n{example}"
        )


def look(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the kind of a path and facts about it. Raises InputError if featkit did not write
    it."""
    if not path.exists():
        raise InputError(f"{path} does not exist; name a file or folder that featkit wrote.")
    if path.is_file() and path.suffix == ".json":
        return "file of API keys", _key_facts(path)
    if path.is_file():
        return "model file", _model_facts(path)
    if is_embeddings(path):
        return "embeddings folder", _embeddings_facts(path)
    if is_index(path):
        return "index", _index_facts(path)
    if is_run(path):
        return "run folder", _run_facts(path)
    raise InputError(
        f"{path} is not a run folder, embeddings folder or index of featkit; name one of these, or"
        " a model file."
    )


def _model_facts(path: Path) -> dict[str, Any]:
    from featkit.cli.calling_example import calling_example
    from featkit.modelfile import count_nodes, read_manifest

    manifest = read_manifest(path)
    geometry = manifest.geometry
    sizes = f"any multiple of {manifest.patch}, {geometry.height}×{geometry.width} natively"
    if manifest.fixed_size is not None:
        sizes = "{}×{} only".format(*manifest.fixed_size)
    return {
        **json.loads(manifest.to_json()),
        "weight_precision": manifest.weight_precision or manifest.precision,
        "sizes": sizes,
        "bytes": path.stat().st_size,
        "nodes": count_nodes(path),
        "example": calling_example(path, manifest),
    }


def _key_facts(path: Path) -> dict[str, Any]:
    need_extra("serve", "pydantic")
    from featkit.serve.keys import KeyFile, read_keys

    keys = read_keys(path)
    now = datetime.now(UTC)
    return {
        "format": KeyFile(keys=keys).format,
        "keys": [key.name for key in keys],
        "expired": [key.name for key in keys if key.has_expired(now)],
    }


def _embeddings_facts(path: Path) -> dict[str, Any]:
    from featkit.embeddings import Embeddings

    folder = Embeddings.open(path)
    plan: dict[str, Any] = json.loads(folder.plan.to_json())
    return {
        **plan,
        "shards": folder.plan.num_shards,
        "missing_shards": len(folder.missing_shards()),
    }


def _index_facts(path: Path) -> dict[str, Any]:
    from featkit.index import Index
    from featkit.index.approximate.background import Failure
    from featkit.index.reclaiming import DeadRows
    from featkit.modelfile import read_manifest

    with Index.open(path) as index:
        dead, failure = DeadRows.of(index), Failure.of(path)
        return {
            "items": len(index),
            "vector_width": index.width,
            "model": read_manifest(index.model_path).name,
            "fingerprint": index.fingerprint,
            "made_by": str(index.run),
            "also_proven": [str(proof.run) for proof in index.proofs],
            **_search_facts(index),
            "removed_vectors": dead.num_dead,
            "reclaimable_bytes": dead.num_bytes,
            **({} if failure is None else {"failed_build": f"{failure.when}: {failure.error}"}),
            "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        }


def _search_facts(index: "Index") -> dict[str, Any]:
    """Return how an index is searched, and how well if that is approximate."""
    from featkit.index.approximate.generation import SETTING, Generation

    text = index.read(lambda state: state.catalogue.settings().get(SETTING))
    if text is None:
        return {"search": "exact"}
    generation = Generation.from_json(str(text))
    measured = generation.measured
    return {
        "search": f"{generation.kind.about}, of {generation.num_items:,} images, built"
        f" {generation.built}{' on a GPU' * (generation.built_on == 'gpu')}",
        "recall_at_10": measured.recall_at_10,
        "recall_at_10_low": measured.low,
        "search_p50_ms": measured.p50_ms,
        "search_p99_ms": measured.p99_ms,
    }


def _run_facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"checkpoints": len(list((path / "checkpoints").glob("step-*")))}
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            # The last line may be cut short: the run was killed, or is writing it right now.
            except ValueError:
                continue
            facts.update(
                {
                    f"last_{name}": value
                    for name, value in values.items()
                    if name in ("step", "loss", "copy_recall")
                }
            )
    facts["backbone"] = (path / "backbone.safetensors").is_file()
    return facts


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {each}" for name, each in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return f"{value:,}" if isinstance(value, int) else str(value) or "–"

"""`featkit inspect`: what a featkit file or folder holds."""

import json
from pathlib import Path
from typing import Any

from featkit.cli.console import print_json, print_table
from featkit.errors import InputError
from featkit.folders import is_index


def inspect(path: Path, /, *, json_: bool = False) -> None:
    """Say what PATH is and holds: a model file, a run folder, an embeddings folder or an index.

    Of a model file also how to call it without featkit.

    Example: featkit inspect photos.index

    Parameters
    ----------
    path
        A file or folder that featkit wrote.
    json_
        Print it as JSON.
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
            "\nThe vector of photo.jpg with nothing but onnxruntime, numpy and"
            f" Pillow:\n\n{example}"
        )


def look(path: Path) -> tuple[str, dict[str, Any]]:
    """What a path is, in words, and what is worth knowing of it. InputError for anything that
    featkit did not write."""
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_file():
        return "model file", _model_facts(path)
    if (path / "plan.json").is_file():
        return "embeddings folder", _embeddings_facts(path)
    if is_index(path):
        return "index", _index_facts(path)
    if (path / "config.yaml").is_file():
        return "run folder", _run_facts(path)
    raise InputError(f"{path} is no run folder, embeddings folder or index of featkit's.")


def _model_facts(path: Path) -> dict[str, Any]:
    from featkit.cli.calling_example import calling_example
    from featkit.modelfile import count_nodes, read_manifest

    manifest = read_manifest(path)
    geometry = manifest.geometry
    sizes = f"every multiple of {manifest.patch}, {geometry.height}×{geometry.width} natively"
    if manifest.fixed_size is not None:
        sizes = "{}×{} only".format(*manifest.fixed_size)
    return {
        **json.loads(manifest.to_json()),
        "sizes": sizes,
        "bytes": path.stat().st_size,
        "nodes": count_nodes(path),
        "example": calling_example(path, manifest),
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
    from featkit.modelfile import read_manifest

    with Index.open(path) as index:
        return {
            "items": len(index),
            "vector_width": index.width,
            "model": read_manifest(index.model_path).name,
            "fingerprint": index.fingerprint,
            "made_by": str(index.run),
            "also_proven": [str(proof.run) for proof in index.proofs],
            "bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
        }


def _run_facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"checkpoints": len(list((path / "checkpoints").glob("step-*")))}
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        for line in metrics.read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line)
            # the last line of a run that was killed, or that is writing it just now
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
        return ", ".join(f"{name}: {part}" for name, part in value.items()) or "–"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "–"
    return f"{value:,}" if isinstance(value, int) else str(value) or "–"

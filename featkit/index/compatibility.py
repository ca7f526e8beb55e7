"""Which models, engines and precisions give vectors that may be compared with those of an index.

Vectors of different models never mix. Vectors of one model mix across engines and precisions,
except for bf16, which needs a proof: `featkit verify` checks on images that a run gives the same
vectors, and the index keeps the result in its settings.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from featkit.backends import BF16, Run
from featkit.embeddings import Embeddings
from featkit.errors import InputError
from featkit.index.records import Value
from featkit.index.tables import DamagedCatalogue
from featkit.modelfile import Manifest, read_manifest

MODEL_FILE = "model.onnx"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A record that a run was measured to give the vectors of ONNX Runtime in float32.

    recall_lost is the loss of recall@1 in a search for edited copies.
    """

    backend: str
    precision: str
    num_images: int
    least_cosine: float
    mean_cosine: float
    recall_lost: float

    @property
    def run(self) -> Run:
        """The proven run."""
        return Run(self.backend, self.precision)


@dataclass(frozen=True, kw_only=True)
class Compatibility:
    """The model and run that made an index's vectors, and the proofs for other runs."""

    index: Path
    fingerprint: str
    model_name: str
    width: int
    run: Run
    proofs: tuple[Proof, ...]

    @classmethod
    def of(cls, index: Path, settings: Mapping[str, Value]) -> Compatibility:
        """Read it from the settings of an index."""
        try:
            return cls(
                index=index,
                fingerprint=str(settings["fingerprint"]),
                model_name=str(settings["model_name"]),
                width=int(settings["width"]),
                run=_run(index, settings),
                proofs=tuple(read_proofs(str(settings.get("proofs", "[]")))),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedCatalogue(f"a setting is missing or wrong: {error}") from error

    def updated(self, new: Compatibility) -> Compatibility:
        """Return this with the proofs of `new`, which was read later from the same path.

        InputError if the vectors of `new` were made by another model or run.
        """
        if (new.fingerprint, new.width, new.run) != (self.fingerprint, self.width, self.run):
            raise InputError(
                f"{self.index} was replaced by an index of {new.model_name}"
                f" ({new.fingerprint[:12]}, {new.run}) after it was opened as one of"
                f" {self.model_name} ({self.fingerprint[:12]}, {self.run}); open it again."
            )
        return dataclasses.replace(self, proofs=new.proofs)

    def accepts_run(self, run: Run) -> bool:
        """Return whether vectors that `run` makes may be compared with those of the index."""
        return runs_agree(self.run, run, self.proofs)

    def accepts_model(self, manifest: Manifest) -> bool:
        """Return whether vectors of a model file may be compared with those of the index.

        They may if it is the index's model, or if one of the two is proven equal to the other.
        """
        if self.fingerprint in (manifest.fingerprint, *manifest.proven_equal_to):
            return True
        own = read_manifest(self.index / MODEL_FILE)
        return manifest.fingerprint in own.proven_equal_to

    def check_embeddings(self, folder: Embeddings) -> None:
        """Raise InputError if the vectors of an embeddings folder are not compatible with the
        index."""
        plan = folder.plan
        if plan.fingerprint != self.fingerprint and not self.accepts_model(
            read_manifest(folder.model_path)
        ):
            raise InputError(
                f"{folder.path} was embedded by {plan.model_name} ({plan.fingerprint[:12]}), but"
                f" {self.index} has vectors of {self.model_name} ({self.fingerprint[:12]}); embed"
                " the images with the index's model, or make another index."
            )
        run = Run.parse(plan.run)
        if not self.accepts_run(run):
            coarse = run if run.precision == BF16 else self.run
            raise InputError(
                f"{folder.path} was embedded by {run}, but {self.index} by {self.run}; prove that"
                f" both give the same vectors with `featkit verify {self.index} photos/ --backend"
                f" {coarse.backend} --precision {coarse.precision}`, or embed with --backend"
                f" {self.run.backend} --precision {self.run.precision}."
            )


def runs_agree(own: Run, other: Run, proofs: Sequence[Proof]) -> bool:
    """Return whether vectors that two runs of one model make may be compared.

    Vectors in float32, or in the precision of the file, differ by rounding in the last digits. bf16
    is coarser: it agrees with bf16, and with other precisions only if that was proven.
    """
    coarse = [run for run in (own, other) if run.precision == BF16]
    return len(coarse) != 1 or any(proof.run == coarse[0] for proof in proofs)


def write_proofs(proofs: Sequence[Proof]) -> str:
    """Return proofs as the text of a setting."""
    return json.dumps([asdict(proof) for proof in proofs])


def read_proofs(text: str) -> list[Proof]:
    """Read what `write_proofs` wrote. Any other text proves nothing: the list is empty."""
    renamed = {"num_pictures": "num_images"}  # fields of earlier versions
    try:
        return [
            Proof(**{renamed.get(name, name): value for name, value in values.items()})
            for values in json.loads(text)
        ]
    except (ValueError, TypeError, AttributeError):
        return []


def _run(index: Path, settings: Mapping[str, Value]) -> Run:
    # an index without the setting is older than other runs
    text = str(settings.get("run", "onnxruntime fp32"))
    try:
        return Run.parse(text)
    except ValueError as error:
        raise InputError(f"{index} cannot be used: {error}; update featkit.") from error

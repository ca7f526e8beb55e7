"""Options that several commands share, each with its one help text."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from cyclopts import Parameter

BackendName: TypeAlias = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16"]

Quiet: TypeAlias = Annotated[bool, Parameter(help="Show no progress.")]
AsJson: TypeAlias = Annotated[bool, Parameter(help="Print the result as JSON.")]
Limit: TypeAlias = Annotated[
    int | None,
    Parameter(help="Use at most this many images, spread evenly over the source."),
]
Retry: TypeAlias = Annotated[
    bool,
    Parameter(
        help="Try failed images again even if their files have not changed, for example after"
        " installing a package.",
    ),
]
Rehash: TypeAlias = Annotated[
    bool,
    Parameter(
        help="Read every file and compare its content, to find files that changed while keeping"
        " their size and time.",
    ),
]
Where: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="Only images that match this filter, such as \"label = 'cat' and width >= 640\". It"
        " can name key, folder, source, width, height, added and every metadata field.",
    ),
]
Host: TypeAlias = Annotated[
    str,
    Parameter(
        help="Address to listen on: 127.0.0.1 accepts connections from this machine only, 0.0.0.0"
        " from every network it is on.",
    ),
]
Port: TypeAlias = Annotated[int, Parameter(help="Port to listen on; 0 picks a free one.")]
EvaluatedModel: TypeAlias = Annotated[
    str | None,
    Parameter(
        help="A model file; a run folder of `featkit train` or a Hugging Face folder, which run in"
        " torch; or a published backbone, such as dinov2_vits14 or timm:NAME. The default is"
        " featkit-tiny, which ships with featkit.",
    ),
]
LabelColumn: TypeAlias = Annotated[
    str,
    Parameter(
        help="The label column, in both TRAIN and TEST. `label` also means a tar's .cls members, or"
        " the"
        " name of the folder that holds the image.",
    ),
]

"""The model card of a folder for the Hugging Face hub: README.md with YAML in front.

Its fields are the hub's, https://huggingface.co/docs/hub/model-cards: library_name, license, tags,
pipeline_tag, and model-index, from which the hub makes a table of results.
"""

from collections.abc import Sequence
from typing import Any

from Utils.Pretrained_Utils.hub.results import Figure, results_table

UNKNOWN_LICENSE = "unknown"  # one of the hub's own words
_TASK = "image-feature-extraction"

_TEXT = """\
---
{front}---

# {name}

A network that turns an aligned photo of a face into {feature_dim} values: photos of one person have
a high cosine similarity.

    {line}

| | |
|---|---|
{facts}

The input is {height}×{width} pixels of a face aligned by five points, {order}, as
(pixel − {mean:g}) / {scale:g}. The output is {normalised}.

## Results

{results}

## Use

The files are read as safetensors, and no code in this folder is run: there is none. In a checkout
of the face recognition training program that wrote it:

```python
import torch

from Utils.Pretrained_Utils import load_backbone

backbone = load_backbone("hf:USER/{name}")  # or the path of this folder
images = torch.randint(0, 256, (2, {height}, {width}, 3), dtype=torch.uint8)  # N×H×W×3, RGB
with torch.no_grad():
    embeddings = backbone(backbone.preprocessing(images))  # N×{feature_dim}
```

```bash
python LFW_Evaluation.py --checkpoint hf:USER/{name} --lfw_dataset_path lfw.bin
```

## Licence

{licence}
"""


def model_card(
    name: str,
    line: str,
    architecture: dict[str, Any],
    facts: dict[str, Any],
    figures: Sequence[Figure],
    licence: str,
) -> str:
    """The text of README.md.

    name: of the folder. line: `load.describe`'s. architecture: `Backbone.describe_backbone`'s
    values. facts: rows of a table. licence: its short name at the hub.
    """
    import yaml  # here, because few commands write a card

    height, width = architecture["input_size"]
    given = architecture["preprocessing"]
    normalised = architecture["variant"].get("normalise")
    return _TEXT.format(
        front=yaml.safe_dump(
            _front(name, architecture, figures, licence), sort_keys=False, allow_unicode=True
        ),
        name=name,
        line=line,
        feature_dim=architecture["feature_dim"],
        facts="\n".join(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        height=height,
        width=width,
        order=given["channel_order"],
        mean=given["mean"],
        scale=given["scale"],
        normalised="L2-normalised" if normalised else "not L2-normalised",
        results=results_table(figures) if figures else "None were measured yet.",
        licence=_licence(licence),
    )


def _cell(value: Any) -> str:
    return str(value).replace("|", " ").replace("\n", " ")


def _front(
    name: str, architecture: dict[str, Any], figures: Sequence[Figure], licence: str
) -> dict[str, Any]:
    """The values in front of the card."""
    network = architecture["name"].lower().replace("_", "-").replace(":", "-")
    values: dict[str, Any] = {
        "library_name": "pytorch",
        "license": licence,
        "pipeline_tag": _TASK,
        "tags": ["face-recognition", "face-verification", "safetensors", network],
    }
    results = [
        _result(benchmark, figures) for benchmark in dict.fromkeys(f.benchmark for f in figures)
    ]
    if results:
        values["model-index"] = [{"name": name, "results": results}]
    return values


def _result(benchmark: str, figures: Sequence[Figure]) -> dict[str, Any]:
    own = [figure for figure in figures if figure.benchmark == benchmark]
    return {
        "task": {"type": _TASK, "name": "Face recognition"},
        "dataset": {
            "type": benchmark.partition(",")[0].lower().replace(" ", "-"),
            "name": benchmark,
        },
        "metrics": [
            {
                "type": figure.metric.partition(" ")[0].partition("=")[0].lower(),
                "name": figure.metric,
                "value": round(figure.value, 6),
            }
            for figure in own
        ],
    }


def _licence(licence: str) -> str:
    if licence != UNKNOWN_LICENSE:
        return f"{licence}."
    return (
        "Not stated yet. Who publishes this writes the licence's short name at the hub into\n"
        "`license:` at the top of this page. The data that the weights were trained on may limit\n"
        "their use."
    )

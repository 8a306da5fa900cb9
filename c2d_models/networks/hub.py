"""Networks on the Hugging Face Hub: folders with a model file, its config and a card.

    net.save_pretrained("folder")
    c2d_models.load("folder")  # or HiET.from_pretrained("folder"), or c2d upscale --model folder
    net.push_to_hub("me/hiet")
    HiET.from_pretrained("me/hiet")

`model.safetensors` is a file of `checkpoint`, which alone says what the network is; `config.json`
repeats it for the Hub, which counts downloads by that name. huggingface_hub's mixin is the base of
an adapter here, not of the networks: it costs a tenth of torch's own import, which nobody should
pay who reads no Hub, and its view of constructor arguments would be a second config.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

from ..errors import ModelFileError
from . import checkpoint

if TYPE_CHECKING:
    from .network import Network

_CARD = """---
{{ card_data }}
---

# {{ title }}

A super-resolution network of [c2d-isr](https://arxiv.org/abs/2503.13740):
`{{ name }}`, {{ factor }}, {{ params }} parameters.

With that package installed:

```
c2d upscale photo.jpg -o large.png --model FOLDER
```

```python
import c2d_models

large = c2d_models.upscale("photo.jpg", model="FOLDER")
net = c2d_models.load("FOLDER")  # the same in PyTorch
```

FOLDER is a download of this repository. From the Hub itself:
`{{ kind }}.from_pretrained("USER/NAME")`, where `from {{ module }} import {{ kind }}`.

## Training
{% for line in training %}
- {{ line }}{% endfor %}

The licence above is the package's; the training data have their own, named here as far as the
record does.
"""


class HubModel(
    ModelHubMixin,
    library_name="c2d-isr",
    license="apache-2.0",
    pipeline_tag="image-to-image",
    tags=["super-resolution", "image-upscaling", "pytorch"],
    paper_url="https://arxiv.org/abs/2503.13740",
    model_card_template=_CARD,
):
    """The Hub's view of a network.

    Args:
        net: the network.
    """

    def __init__(self, net: Network):
        self.net = net

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint.save(self.net, save_directory / checkpoint.FILE_NAME)
        config = {"name": self.net.name, "scale": self.net.scale, "config": self.net.config}
        text = json.dumps(config, indent=1) + "\n"
        (save_directory / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **options: Any,
    ) -> HubModel:
        path: str | Path = Path(model_id)
        if Path(model_id).is_dir():
            path = checkpoint.file_in(Path(model_id))
        else:
            path = hf_hub_download(
                model_id,
                checkpoint.FILE_NAME,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return cls(checkpoint.load(path, **options))

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        net = self.net
        factor = "any factor from 1 to 4" if net.scale is None else f"x{net.scale}"
        facts = {
            "title": f"{net.name}, {'continuous' if net.scale is None else factor}",
            "name": net.name,
            "factor": factor,
            "params": f"{sum(p.numel() for p in net.parameters()):,}",
            "kind": type(net).__name__,
            "module": type(net).__module__,
            "training": training_facts(net.record),
        }
        return super().generate_model_card(*args, **{**facts, **kwargs})


def load(kind: type[Network], folder_or_repo: str | Path, **options: Any) -> Network:
    """`kind.from_pretrained`.

    Raises:
        ModelFileError: nothing there, a broken file, or a network of another class.
    """
    if Path(folder_or_repo).is_dir():
        checkpoint.file_in(Path(folder_or_repo))  # a folder without a model is told as such
    try:
        net = HubModel.from_pretrained(folder_or_repo, **options).net
    except (HfHubHTTPError, EntryNotFoundError, HFValidationError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"{str(folder_or_repo)!r} is not a folder here, and the Hub has no such model: {reason}"
        ) from error
    if kind is not type(net) and not inspect.isabstract(kind):
        found = type(net).__name__
        raise ModelFileError(
            f"{folder_or_repo} holds a {found} ({net.name}), not a {kind.__name__}: load it by "
            f"{found}.from_pretrained, or by c2d_models.load, which takes any"
        )
    return net


def training_facts(record: dict[str, Any]) -> list[str]:
    """The short form of a training record: one line per fact that it states."""
    config = record.get("config", {})
    curve = record.get("curve") or [{}]
    scores = {key: value for key, value in curve[-1].items() if key.startswith("psnr_")}
    lines = [
        ("stage", config.get("stage")),
        ("begun from", record.get("init")),
        ("steps", record.get("step")),
        ("images a step", config.get("batch")),
        ("LR patch", config.get("patch")),
        ("learning rate", config.get("lr")),
        ("training images", record.get("training_images")),
        ("data", "; ".join(config.get("licences") or [])),
        (
            "PSNR on held-out training photographs, dB",
            ", ".join(f"{key.removeprefix('psnr_')} {value}" for key, value in scores.items()),
        ),
        ("device", record.get("device")),
        ("note", record.get("note")),
    ]
    facts = [f"{name}: {value}" for name, value in lines if value not in (None, "")]
    return facts or ["This file has no training record."]

"""Train a network on a folder of pictures: python examples/train_on_folder.py FOLDER [OUTPUT].

The body of a shipped model, a fresh up-sampler for a factor of 2, a few steps only: raise `steps`.
The same as a file for `c2d train` is configs/hiet_swinir_tiny_x4.yaml.
"""

import sys
from pathlib import Path

import c2d_models
from c2d_models.training.config import TrainConfig
from c2d_models.training.trainer import train

folder = Path(sys.argv[1])
output = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/mine")
shipped = {model.name: model for model in c2d_models.list_models()}

weights = train(
    TrainConfig(
        network="hiet_swinir_tiny",
        stage="discrete",
        scale=2,
        init=shipped["hiet_swinir_tiny_continuous"].path,
        data=[folder],
        output=output,
        steps=20,
        batch=2,
        patch=32,
        validate_every=10,
    )
)
net = c2d_models.load(weights)
print(f"{weights}: {net.name} x{net.scale}, for c2d upscale --model {weights}")

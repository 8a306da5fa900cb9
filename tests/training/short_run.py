"""The configuration of a run of four steps."""

import yaml


def write_config(folder, photos, **changes):
    values = {
        "network": "hiet_swinir_tiny",
        "stage": "discrete",
        "scale": 2,
        "data": [str(photos)],
        "output": str(folder / "run"),
        "steps": 4,
        "batch": 2,
        "patch": 16,
        "validate_every": 2,
        "checkpoint_every": 2,
        "validation_images": 1,
        "validation_crop": 48,
        "warmup": 2,
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in values.items() if value is not None})
    )
    return path

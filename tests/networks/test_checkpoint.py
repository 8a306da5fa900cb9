"""Model files: round trips, the authors' files, and the sentence each bad file gets."""

import json
import re
import warnings

import pytest
import torch
from golden_weights import golden_state_dict, listing
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel

from c2d_models import create, files, list_models, load
from c2d_models.errors import ModelFileError
from c2d_models.evaluation import results as scores
from c2d_models.networks.checkpoint import save
from c2d_models.pretrained import loading
from c2d_models.pretrained.loading import read_record


def weights_of(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.state_dict())


@pytest.mark.parametrize("scale", [3, None], ids=["x3", "continuous"])
@pytest.mark.parametrize("name", ["hiet_swinir_tiny", "swinir_l_tiny", "hiet_mambairv2_tiny"])
def test_round_trip(name, scale, tmp_path):
    net = create(name, scale)
    save(net, tmp_path / "net.safetensors", {"steps": 7, "data": ["a", "b"]})
    again = load(tmp_path / "net.safetensors")
    assert (again.name, again.scale, again.config, again.training) == (
        name,
        scale,
        net.config,
        False,
    )
    for key, value in weights_of(net).items():
        assert torch.equal(value, again.state_dict()[key]), key
    assert read_record(tmp_path / "net.safetensors") == {"steps": 7, "data": ["a", "b"]}
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_config_comes_from_the_file(tmp_path):
    net = create("hiet_swinir_tiny", 2, config={"dim": 16, "blocks": 1, "windows": [16]})
    save(net, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors")
    assert again.config["windows"] == [16] and len(again.blocks) == 1
    x = torch.rand(1, 3, 9, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), net.eval()(x))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("asked", "expected"),
    [(None, torch.float32), (torch.float64, torch.float64), (torch.bfloat16, torch.bfloat16)],
    ids=["default", "float64", "bfloat16"],
)
def test_half_precision_file(stored, asked, expected, tmp_path):
    net = create("hiet_swinir_tiny", 4)
    path = tmp_path / "half.safetensors"
    save(net, path, dtype=stored)
    assert path.stat().st_size < 2.4 * sum(p.numel() for p in net.parameters())
    again = load(path, dtype=asked)
    for key, value in weights_of(net).items():
        assert again.state_dict()[key].dtype == expected
        assert torch.equal(value.to(stored).to(expected), again.state_dict()[key]), key
    assert next(net.parameters()).dtype == torch.float32


def test_a_float64_file_stays_exact(tmp_path):
    net = create("swinir_l_tiny", 2).double()
    save(net, tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors")
    assert all(p.dtype == torch.float64 for p in again.parameters())


def official(
    scale: int, dtype: torch.dtype = torch.float32, published: str = "swinir_light"
) -> dict[str, torch.Tensor]:
    """The authors' state dict: golden parameters, and zeros where they have buffers."""
    state = {
        key: torch.zeros(shape, dtype=getattr(torch, kind))
        for key, shape, kind, _ in listing(f"{published}_x{scale}")
    }
    golden = golden_state_dict(f"{published}_x{scale}")
    return {**state, **{key: torch.from_numpy(value).to(dtype) for key, value in golden.items()}}


WRAPPINGS = {
    "bare": lambda state: state,
    "params": lambda state: {"params": state},
    "params_ema": lambda state: {"params_ema": state, "params": {"other": torch.zeros(1)}},
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": {"state_dict": state}},
    "module": lambda state: {"params": prefixed(state, "module.")},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled-ddp": lambda state: {"model_state_dict": prefixed(state, "module._orig_mod.")},
    "compiled-inside": lambda state: {
        key.replace("layers.0.", "layers.0._orig_mod."): value for key, value in state.items()
    },
    "averaged": lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(3)},
    "lightning": lambda state: {
        "epoch": 3,
        "state_dict": {**prefixed(state, "net."), "loss.vgg.weight": torch.zeros(2)},
    },
    "lightning-model": lambda state: {"state_dict": prefixed(state, "model.")},
    "mmagic": lambda state: {
        "state_dict": {**prefixed(state, "generator."), "step_counter": torch.tensor(5)}
    },
    "mmagic-ema": lambda state: {
        "state_dict": {**prefixed(state, "generator_ema."), **prefixed(zeros(state), "generator.")}
    },
    "net": lambda state: {"net": state},
    "netG": lambda state: {"netG": state, "netD": {"conv.weight": torch.zeros(3)}},
    "params-ema": lambda state: {"params-ema": state},
    "ema": lambda state: {"model": zeros(state), "ema": state},
}
BOTH = ("params_ema", "mmagic-ema", "ema")
"""Of those, the ones that hold raw weights beside averaged ones."""


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def zeros(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_authors_files(wrapping, tmp_path):
    state = official(4)
    torch.save(WRAPPINGS[wrapping](state), tmp_path / "swinir.pth")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        net = load(tmp_path / "swinir.pth")
    assert (net.name, net.scale) == ("swinir_l", 4)
    assert len(said) == (wrapping in BOTH)
    assert all("the averaged ones are taken" in str(warning.message) for warning in said)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert read_record(tmp_path / "swinir.pth") == {}


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize(
    ("published", "name"),
    [
        ("swinir_light", "swinir_l"),
        ("srformer_light", "srformer_l"),
        ("mambairv2_light", "mambairv2_l"),
        ("hit_sir", "hit_sir"),
        ("hit_srf", "hit_srf"),
    ],
)
def test_authors_files_are_told_apart(published, name, scale, tmp_path):
    state = official(scale, published=published)
    save_file(state, tmp_path / "network.safetensors")
    net = load(tmp_path / "network.safetensors")
    assert (net.name, net.scale) == (name, scale)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


HOLDERS = {
    "compiled": torch.compile,
    "data-parallel": nn.DataParallel,
    "averaged": AveragedModel,
    "compiled-average": lambda net: AveragedModel(torch.compile(net)),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_what_holds_a_network_is_not_written(holder, tmp_path):
    net = create("hiet_swinir_tiny", 4)
    save(HOLDERS[holder](net), tmp_path / "net.safetensors")
    stored = load(tmp_path / "net.safetensors").state_dict()
    for name, value in net.state_dict().items():
        assert torch.equal(stored[name], value), name


def test_a_file_of_ours_with_a_holder_s_names_loads(tmp_path):
    tampered(tmp_path / "net.safetensors", header(), lambda state: prefixed(state, "_orig_mod."))
    assert load(tmp_path / "net.safetensors").name == "hiet_swinir_tiny"


REMADE = {
    "pruned": lambda module: prune.l1_unstructured(module, "weight", 0.5),
    "weight-norm-hook": weight_norm,
    "weight-norm": parametrizations.weight_norm,
    "spectral-norm-hook": spectral_norm,
    "spectral-norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("change", REMADE)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weights_that_are_made_of_others_are_written_as_made(change, tmp_path):
    net = create("hiet_swinir_tiny", 4)
    nn.init.normal_(net.upsample[0].weight, std=0.05)
    for name, module in list(net.named_modules()):
        if name.endswith((".proj", ".fc1", "conv_first")):
            REMADE[change](module)
    save(net.eval(), tmp_path / "net.safetensors")
    x = torch.rand(1, 3, 12, 12)
    with torch.no_grad():
        found = load(tmp_path / "net.safetensors")(x)
        torch.testing.assert_close(found, net(x), atol=1e-5, rtol=0)


def test_adapters_are_merged_before_they_are_written(tmp_path):
    net = create("swinir_l_tiny", 4)
    net.conv_first = nn.Sequential(net.conv_first)
    with pytest.raises(
        ModelFileError, match=r"no plain conv_first\.weight to write: merge adapters"
    ):
        save(net, tmp_path / "net.safetensors")
    assert not (tmp_path / "net.safetensors").exists()


def header(**changes) -> dict[str, str]:
    net = create("hiet_swinir_tiny", 4)
    ours = {"name": net.name, "scale": 4, "config": net.config, "format": 1, **changes}
    return {"c2d_isr": json.dumps(ours)}


def tampered(path, metadata, change=lambda state: state):
    state = {
        key: value.clone() for key, value in create("hiet_swinir_tiny", 4).state_dict().items()
    }
    save_file(change(state), path, metadata)


def dropped(state):
    return {key: value for key, value in state.items() if key != "norm.bias"}


BAD_FILES = {
    "empty": (lambda p: p.with_suffix(".pth").write_bytes(b""), "cannot be read as a model file"),
    "picture": (
        lambda p: p.with_suffix(".pt").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)),
        "is not a file of weights",
    ),
    "text": (
        lambda p: p.with_suffix(".pth").write_bytes(b"junk\n"),
        "is not a file of weights",
    ),
    "no-safetensors": (lambda p: p.write_bytes(b"hello there, this is text"), "cannot be read"),
    "code-in-pickle": (
        lambda p: torch.save({"params": {"w": re.compile("x")}}, p.with_suffix(".pth")),
        "is not a file of weights",
    ),
    "no-tensors": (
        lambda p: torch.save({"epoch": 3}, p.with_suffix(".pth")),
        "not all its entries are named tensors",
    ),
    "a-number": (lambda p: torch.save(5, p.with_suffix(".pth")), "holds no state dict"),
    "another-network": (
        lambda p: save_file({"conv.weight": torch.zeros(3)}, p),
        r"of no network that is known here, 1 tensors \(conv.weight, ...\); known of their "
        "authors' files are SwinIR, HAT, SRFormer, Swin2SR, MambaIRv2, MambaIR, HiT-SRF, HiT-SIR, "
        "HiT-SNG",
    ),
    "dat": (
        lambda p: save_file({"layers.0.blocks.0.attn.attns.0.pos.pos3.2.bias": torch.zeros(3)}, p),
        "holds a DAT, of which this package has no network",
    ),
    "another-width": (
        lambda p: save_file({**official(4), "conv_first.weight": torch.zeros(180, 3, 3, 3)}, p),
        r"does not fit swinir_m x4: conv_first.bias is \(180,\), not \(60,\)",
    ),
    "without-sizes": (
        lambda p: save_file({**official(4), "conv_first.weight": torch.zeros(0)}, p),
        "holds a SwinIR whose shapes do not say its sizes",
    ),
    "missing-weight": (
        lambda p: tampered(p, header(), dropped),
        "does not fit hiet_swinir_tiny x4: norm.bias is missing",
    ),
    "extra-weight": (
        lambda p: tampered(p, header(), lambda s: {**s, "more": torch.zeros(1)}),
        "does not fit hiet_swinir_tiny x4: it has no more",
    ),
    "newer-format": (lambda p: tampered(p, header(format=2)), r"newer version .*\(format 2\)"),
    "unknown-name": (lambda p: tampered(p, header(name="zzz")), "holds a network 'zzz'"),
    "bad-config": (
        lambda p: tampered(p, header(config={"depth": 3})),
        "describes a hiet_swinir_tiny that cannot be built",
    ),
    "broken-header": (lambda p: tampered(p, {"c2d_isr": "{"}), "does not say which network"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(kind, tmp_path):
    write, sentence = BAD_FILES[kind]
    write(tmp_path / "file.safetensors")
    (path,) = tmp_path.iterdir()
    with pytest.raises(ModelFileError, match=sentence) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_files(tmp_path):
    net = create("hiet_swinir_tiny", 4)
    save(net, tmp_path / "a.safetensors")
    torch.save(net.state_dict(), tmp_path / "b.pth")
    for path in list(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ModelFileError, match="cannot be read as a model file"):
            load(path)


def test_noise_gets_a_sentence(tmp_path):
    """No bytes may escape as another exception, whatever an unpickler makes of them."""
    generator = torch.Generator().manual_seed(3)
    path = tmp_path / "noise.pth"
    for length in (1, 2, 5, 17, 300):
        for _ in range(20):
            noise = torch.randint(256, (length,), generator=generator)
            path.write_bytes(bytes(noise.tolist()))
            with pytest.raises(ModelFileError):
                load(path)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A folder of shipped models with two in it."""
    monkeypatch.setattr(loading, "WEIGHTS", tmp_path)
    save(create("hiet_swinir_tiny", None), tmp_path / "hiet_swinir_tiny_continuous.safetensors")
    save(create("hiet_swinir_tiny", 4), tmp_path / "hiet_swinir_tiny_x4.safetensors")
    return tmp_path


def test_list_models(shipped):
    models = list_models()
    assert [(m.name, m.scale, m.params) for m in models] == [
        ("hiet_swinir_tiny_continuous", None, 136_027),
        ("hiet_swinir_tiny_x4", 4, 126_232),
    ]
    for model in models:
        assert model.path.parent == shipped
        assert model.size_bytes == model.path.stat().st_size
        assert load(model.name).scale == model.scale


@pytest.mark.parametrize("info", list_models(), ids=lambda info: info.name)
def test_shipped_models_come_with_their_scores(info):
    """After new weights: make scores BENCHMARKS="Set5 Set14"."""
    rows = {(r["model"], r["dataset"], r["scale"]): r for r in scores.kept(info.path)}
    bicubic = {("Set5", 2): 33.66, ("Set5", 3): 30.39, ("Set5", 4): 28.42, ("Set14", 4): 26.00}
    for scale in [info.scale] if info.scale else [2, 3, 4]:
        for dataset in ("Set5", "Set14"):
            own, plain = rows[info.name, dataset, scale], rows["bicubic", dataset, scale]
            assert own["psnr_y"] > plain["psnr_y"] + 1 and own["ssim_y"] > plain["ssim_y"]
            assert (own["params"], own["rule"], own["lr"]) == (info.params, "papers", "files")
            published = bicubic.get((dataset, scale), plain["psnr_y"])
            assert plain["psnr_y"] == pytest.approx(published, abs=0.1)
    assert len(rows) == len(scores.kept(info.path)), "one row per set, scale and model"


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        pytest.param(
            "hiet_swinir_tiny_x3",
            "there is no model or file 'hiet_swinir_tiny_x3'; did you mean 'hiet_swinir_tiny_x4'?",
            id="nearest",
        ),
        pytest.param(
            "nothing/like.pth", "or file 'nothing/like.pth'; shipped models: hiet_", id="path"
        ),
    ],
)
def test_unknown_models(shipped, wanted, sentence):
    with pytest.raises(ModelFileError, match=re.escape(sentence)):
        load(wanted)


def test_a_folder_stands_for_the_model_in_it(tmp_path):
    with pytest.raises(ModelFileError, match=r"is a folder without a model\.safetensors"):
        load(tmp_path)
    save(create("swinir_l_tiny", 3), tmp_path / "model.safetensors", {"steps": 5})
    assert (load(tmp_path).name, load(tmp_path).scale) == ("swinir_l_tiny", 3)
    assert read_record(tmp_path) == {"steps": 5}


def test_the_record_stays_with_the_network(tmp_path):
    net = create("swinir_l_tiny", 3)
    assert net.record == {}
    save(net, tmp_path / "a.safetensors", {"steps": 5})
    save(load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert read_record(tmp_path / "b.safetensors") == {"steps": 5}
    save(load(tmp_path / "a.safetensors"), tmp_path / "c.safetensors", {})
    assert read_record(tmp_path / "c.safetensors") == {}


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    save(create("hiet_swinir_tiny", 4), path, {"run": 1})

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(create("hiet_swinir_tiny", 4), path, {"run": 2})
    assert read_record(path) == {"run": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]

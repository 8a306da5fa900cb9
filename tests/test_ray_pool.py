"""Ray workers: what they compute is what this process computes, and a death costs one retry."""

import os
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c2d_models.cli import main
from c2d_models.errors import C2DError, ClusterError
from c2d_models.evaluation import run as evaluation
from c2d_models.ray_pool import RayPool, Task, WorkerDied, Workers

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.fixture(autouse=True)
def _pickled_by_value():
    """Workers do not see the tests' folder."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """in/0.png to in/3.png, the last the largest; the working directory is above."""
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    for number in range(4):
        side = 24 + 8 * number
        pixels = random.integers(0, 256, (side, side + 3, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def local(count):
    return Workers("local", count=count, cpus=1)


def squares(marks: Path):
    """Work that squares; at -n the process is killed, n times in all."""

    def work(item, progress):
        progress(0.5)
        with (marks / "begun").open("a") as file:
            file.write(f"{item}\n")
        if item < 0:
            begun = (marks / "begun").read_text().split().count(str(item))
            if begun <= -item:
                os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return work


def test_a_worker_that_is_killed_costs_its_task_a_retry(tmp_path):
    items = [1, 2, -1, 3, -9, 4]  # -1 is killed once, -9 each time
    with RayPool(local(2)) as pool:
        tasks = [Task(item, weight=abs(item)) for item in items]
        results = dict(pool.run(partial(squares, tmp_path), tasks))
    begun = (tmp_path / "begun").read_text().split()
    assert begun[0] == "-9"  # the heaviest
    assert isinstance(results.pop(-9), WorkerDied)
    assert results == {1: 1, 2: 4, 3: 9, 4: 16, -1: 1}
    assert {item: begun.count(str(item)) for item in items} == {
        **{1: 1, 2: 1, 3: 1, 4: 1},
        **{-1: 2, -9: 3},
    }


def fails():
    raise C2DError("there is no such thing")


def waits(folder: Path):
    """Work that goes on until it is told to stop, and tidies up."""

    def work(item, progress):
        (folder / "half").touch()
        try:
            while True:
                progress(0.25)
                time.sleep(0.02)
        finally:
            (folder / "half").unlink()

    return work


def test_refusals_and_an_interruption(tmp_path):
    told = []

    def interrupt(item, fraction):
        told.append(fraction)
        if fraction == 0.25:
            raise KeyboardInterrupt

    with RayPool(local(1)) as pool:
        with pytest.raises(C2DError, match=r"^there is no such thing$"):
            list(pool.run(fails, [Task(1)]))
        with pytest.raises(KeyboardInterrupt):
            list(pool.run(partial(waits, tmp_path), [Task(1)], interrupt))
        assert (tmp_path / "half").exists()
    assert told[-1] == 0.25
    assert not (tmp_path / "half").exists()
    with (
        pytest.raises(ClusterError, match=r"room for 0 workers of 4096 CPUs, not for any"),
        RayPool(Workers(cpus=4096)),
    ):
        pass


def test_three_nodes_make_the_same_files(pictures, capfd):
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        spread = ["--ray", cluster.address, "--cpus-per-worker", "1"]
        with RayPool(Workers(cluster.address, cpus=1)) as pool:
            assert pool.count == 3
            nodes = {node for _, node in pool.run(where, [Task(i) for i in range(9)])}
        assert len(nodes) == 3
        arguments = ["--model", "hiet_swinir_tiny_continuous", "--scale", "2.5"]
        assert main(["upscale", "in", "-o", "here", *arguments]) == 0
        assert main(["upscale", "in", "-o", "there", *arguments, *spread]) == 0
        assert main(["upscale", "in", "-o", "there", *arguments, *spread]) == 0
        assert "0 written, 4 skipped, 0 failed" in capfd.readouterr().out
    finally:
        ray.shutdown()
        cluster.shutdown()
    names = [f"{number}.png" for number in range(4)]
    assert sorted(os.listdir("there")) == names
    for name in names:
        assert Path("there", name).read_bytes() == Path("here", name).read_bytes()


def where():
    """Work that says on which node it runs."""

    def work(item, progress):
        time.sleep(0.3)
        return ray.get_runtime_context().get_node_id()

    return work


def test_scores_are_the_same(pictures):
    (pictures / "in/broken.png").write_bytes(b"not a picture")
    first, second = (
        evaluation.run(
            ["hiet_swinir_tiny_x4"],
            ["in"],
            scales=[4],
            device="cpu",
            workers=workers,
            output=output,
        )
        for workers, output in ((None, "a.json"), (local(2), "b.json"))
    )
    assert len(first) == 2
    for here, there in zip(first, second, strict=True):
        assert replace(here, images=()) == replace(there, images=())
        assert len(here.left_out) == 1
        scores = [[replace(image, seconds=0.0) for image in each.images] for each in (here, there)]
        assert scores[0] == scores[1]
        assert len(scores[0]) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["upscale", "in", "-o", "out", "--workers", "2"], "add --ray local"),
        (["eval", "in", "--gpus-per-worker", "1"], "add --ray local"),
        (["upscale", "in/0.png", "-o", "-", "--ray", "local"], "standard input and output"),
        (["upscale", "in", "-o", "o", "--ray", "local", "--workers", "0"], "the workers are 0"),
        (["upscale", "in", "-o", "o", "--ray", "127.0.0.1:9"], "at 127.0.0.1:9 does not answer"),
        (["upscale", "in", "-o", "o", "--ray", "in"], "at in does not answer"),
        (
            ["upscale", "in", "-o", "o", "--ray", "local", "--device", "cuda:0"],
            "no node of the cluster has a GPU",
        ),
    ],
)
def test_the_command_line_refuses(pictures, capsys, arguments, sentence):
    assert main(arguments) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not Path("o").exists()

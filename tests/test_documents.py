"""Documents do what they say: blocks of shell and Python run as written, and links lead somewhere.

A block runs if its fence says `sh` or `python`; YAML that opens with a comment like `# small.yaml`
becomes that file. A comment before a block, `<!-- not run: reason -->`, leaves it out, and
`<!-- with: what -->` says what SETUP puts in place for it.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *(ROOT / n / "README.md" for n in ("bench", "examples")),
    ]
)
BLOCK = re.compile(r"(?:<!-- ([^>]*) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SETUP = {
    "net, of published layers": """
from tests.accelerate.published_layers import Body, SwinTransformerBlock
net = Body(*(SwinTransformerBlock(shift=shift) for shift in (0, 2))).eval()
"""
}


def blocks(page):
    """(remark, language, text) of each fenced block."""
    return [
        (remark or "", language, text)
        for remark, language, text in BLOCK.findall(page.read_text(encoding="utf-8"))
    ]


def to_run(page):
    return [
        block
        for block in blocks(page)
        if block[1] in ("sh", "python", "yaml") and not block[0].startswith("not run: ")
    ]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder with what the documents enlarge, train on and score."""
    photo = Image.open(ROOT / "examples" / "photo.png").convert("RGB")
    small = photo.crop((60, 20, 124, 68))
    for name in ("photo.jpg", "scan.tif", "small.png"):
        small.save(tmp_path / name)
    (tmp_path / "holiday").mkdir()
    for number in range(4):
        part = photo.crop((20 * number, 10 * number, 20 * number + 128, 10 * number + 96))
        part.save(tmp_path / "holiday" / f"{number}.png")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for page in PAGES:
        for _, language, text in blocks(page):
            if language == "yaml":
                (tmp_path / text.split()[1]).write_text(text, encoding="utf-8")
    if find_spec("av"):
        make_clip(tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_clip(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for shade in (40, 90, 140):
            frame = av.VideoFrame.from_image(Image.new("RGB", (48, 32), (shade, 80, 200)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if to_run(page)], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_of_a_page_run(page, desk):
    names = {}
    for remark, language, text in to_run(page):
        if remark.startswith("with: "):
            exec(SETUP[remark.removeprefix("with: ")], names)
        if language == "python":
            exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), names)
        elif language == "sh":
            run(text)


def run(text):
    """Commands of a block, stopped by the first that fails."""
    if not find_spec("av"):
        text = "\n".join(line for line in text.splitlines() if "clip.mp4" not in line)
    place = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", text],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": place, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def test_the_pages_have_blocks_that_run_and_say_why_others_do_not():
    assert sum(len(to_run(page)) for page in PAGES) > 12
    languages = {language for page in PAGES for _, language, _ in blocks(page)}
    assert languages == {"sh", "python", "yaml"}
    remarks = [remark for page in PAGES for remark, language, _ in blocks(page) if remark]
    assert all(re.fullmatch(r"(not run|with): .{8,}", remark) for remark in remarks), remarks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page):
    targets = [t for t in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in t]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []


def test_every_document_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        targets = LINK.findall(page.read_text(encoding="utf-8"))
        ahead += [(page.parent / t).resolve() for t in targets if "://" not in t]
    assert {page.resolve() for page in ROOT.glob("docs/*.md")} <= reached
    assert ROOT / "CONTRIBUTING.md" in reached


def test_the_readme_is_a_shop_window():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 150

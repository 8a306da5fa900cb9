"""The page, built of Gradio's components, and its server."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import pyvips
from fastapi import Request
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import Response

from ..errors import C2DError, UpscaleError
from ..images import image_file
from ..pretrained import loading
from ..pretrained.loading import PURPOSES
from ..upscaling import jobs
from ..upscaling.batch import FileOptions, Outcome
from ..upscaling.target import PASS_SCALE, Target, parse_size
from ..upscaling.upscaler import Upscaler
from .running import Status, run

TITLE = "Enlarge photographs"
SUITED = "whichever suits the scale"
BY_SCALE, BY_SIZE = "by a factor", "to a size"
_PREVIEW = 4096  # pixels of the longer side that the page shows; files are whole
_HOUR = 3600  # seconds that files are kept at most
_FONTS = ["system-ui", "sans-serif"]
_STYLE = """
footer { display: none !important }
.status progress { width: 100%; height: 0.6rem }
.status ul { margin: 0.5rem 0 0 1.2rem; list-style: disc }
.refused { color: var(--error-text-color) }
"""
# The browser loads nothing from other servers, whatever a component refers to.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)


@dataclass
class Settings:
    """Choices of the server's owner; the rest is asked on the page.

    Attributes:
        device: where networks compute: "auto", "cpu" or "cuda".
        tile: side of the tiles in input pixels, or "auto".
        max_pixels: of an input.
        model: name or file that is chosen at first; None: the one that suits the scale.
    """

    device: str = "auto"
    tile: str = "auto"
    max_pixels: int = 2**26
    model: str | None = None


@dataclass
class Visit:
    """One visitor's work: what stops it, and where its files lie.

    Attributes:
        stop: set to end the work at its next tile.
        made: the jobs that are done, by the name that the page shows.
        files: folders and uploads, which go when the visitor does.
    """

    stop: threading.Event = field(default_factory=threading.Event)
    made: dict[str, jobs.Job] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


class Page:
    """The handlers of the page's events.

    Args:
        settings: of the server.
        folder: where enlarged files are kept, until their visitor leaves.
    """

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self._visits: dict[str, Visit] = {}

    def enlarge(
        self,
        files: list[str] | None,
        by: str,
        scale: float,
        size: str,
        model: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Values of the status, the files, the pictures' names and the comparison, as they come."""
        visit = self._visit(request)
        visit.stop, visit.made = threading.Event(), {}
        yield "", gr.update(value=None, visible=False), gr.update(choices=[], visible=False), None
        try:
            upscaler = Upscaler.load(
                _target(by, scale, size),
                None if model == SUITED else model,
                self.settings.device,
                tile=self.settings.tile,
            )
            plan = self._plan(files, visit)
        except C2DError as error:
            yield _refusal(str(error)), gr.skip(), gr.skip(), gr.skip()
            return
        options = FileOptions(max_pixels=self.settings.max_pixels)
        done = 0
        with closing(run(plan, upscaler, options, visit.stop)) as steps:
            for status in steps:
                before, done = done, len(status.outcomes)
                for outcome in status.outcomes[before:]:
                    if outcome.written is not None:
                        visit.made[outcome.job.target.name] = outcome.job
                if done > before and visit.made:
                    name = next(reversed(visit.made))
                    names = gr.update(
                        choices=list(visit.made), value=name, visible=len(visit.made) > 1
                    )
                    yield _status(status), gr.skip(), names, compared(visit.made[name])
                else:
                    yield _status(status), gr.skip(), gr.skip(), gr.skip()
        files = _downloads(visit)
        yield gr.skip(), gr.update(value=files, visible=bool(files)), gr.skip(), gr.skip()

    def stop(self, request: gr.Request) -> None:
        """End a visitor's work at its next tile."""
        self._visit(request).stop.set()

    def leave(self, request: gr.Request) -> None:
        """A visitor has closed the page: end the work, and remove the files."""
        visit = self._visit(request)
        visit.stop.set()
        for path in visit.files:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        self._visits.pop(str(request.session_hash), None)

    def compare(self, name: str | None, request: gr.Request) -> Any:
        """The comparison of one of the pictures that were made."""
        job = self._visit(request).made.get(str(name))
        return compared(job) if job else gr.skip()

    def _visit(self, request: gr.Request) -> Visit:
        return self._visits.setdefault(str(request.session_hash), Visit())

    def _plan(self, files: list[str] | None, visit: Visit) -> list[jobs.Job]:
        if not files:
            raise UpscaleError("no photograph is chosen: drop one above, or click there.")
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        visit.files += [folder, *map(Path, files)]
        return jobs.plan(files, folder).jobs


def build(page: Page) -> gr.Blocks:
    """The page's components and what happens on it."""
    shipped = [info.name for info in loading.list_models()]
    first = page.settings.model or SUITED
    models = [first, *(name for name in (SUITED, *shipped) if name != first)]
    labels = [f"{name}: {PURPOSES[name]}" if name in PURPOSES else name for name in models]
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_HOUR, _HOUR)) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                files = gr.File(
                    label="Photographs", file_count="multiple", height=140, elem_id="files"
                )
                by = gr.Radio([BY_SCALE, BY_SIZE], value=BY_SCALE, label="Enlarge", elem_id="by")
                scale = gr.Slider(
                    1, PASS_SCALE, value=PASS_SCALE, step=0.01, label="Scale", elem_id="scale"
                )
                size = gr.Textbox(
                    label="Size in pixels",
                    info="1920x1080, or one of them: 1920x or x1080",
                    visible=False,
                    elem_id="size",
                )
                model = gr.Dropdown(
                    list(zip(labels, models, strict=True)),
                    value=first,
                    label="Model",
                    filterable=False,
                    elem_id="model",
                )
                with gr.Row():
                    go = gr.Button("Enlarge", variant="primary", elem_id="go")
                    cancel = gr.Button("Cancel", elem_id="cancel")
                status = gr.HTML(elem_classes="status", elem_id="status")
                ready = gr.File(
                    label="Enlarged",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="ready",
                )
            with gr.Column(scale=3, min_width=300):
                names = gr.Dropdown([], label="Compare", visible=False, elem_id="names")
                slider = gr.ImageSlider(
                    label="Before and after",
                    type="filepath",
                    max_height=640,
                    buttons=["fullscreen"],
                    elem_id="slider",
                )
                divider = gr.Slider(
                    0, 100, value=50, step=1, label="Divider, in percent", elem_id="divider"
                )
        by.change(
            lambda chosen: (
                gr.update(visible=chosen == BY_SCALE),
                gr.update(visible=chosen == BY_SIZE),
            ),
            by,
            [scale, size],
            show_progress="hidden",
        )
        go.click(
            page.enlarge,
            [files, by, scale, size, model],
            [status, ready, names, slider],
            show_progress="minimal",
            show_progress_on=status,
            concurrency_limit=1,  # one picture at a time, for all visitors
        )
        cancel.click(page.stop, queue=False)
        names.input(page.compare, names, slider, show_progress="hidden")
        divider.input(
            lambda percent: gr.update(slider_position=percent),
            divider,
            slider,
            show_progress="hidden",
        )
        blocks.unload(page.leave)
    return blocks


def serve(
    settings: Settings | None = None,
    host: str | None = None,
    port: int | None = None,
    open_browser: bool = False,
) -> None:
    """Show the page until Ctrl-C; nothing that was uploaded or made stays.

    Args:
        settings: of the server.
        host: address to listen on; None: $GRADIO_SERVER_NAME, or 127.0.0.1, this machine alone.
        port: None: $GRADIO_SERVER_PORT, or the first free one from 7860 on.
        open_browser: show it in a browser.
    """
    with tempfile.TemporaryDirectory(prefix="c2d-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # of uploads
        page = Page(settings or Settings(), Path(folder))
        blocks = build(page)
        _, address, _ = blocks.launch(
            server_name=host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
            server_port=port,
            inbrowser=open_browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            show_error=True,
            footer_links=[],
            allowed_paths=[folder],
            app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=_stay_here)]},
            theme=gr.themes.Base(font=_FONTS, font_mono=["monospace"]),
            css=_STYLE,
        )
        print(f"{address} is open. Ctrl-C closes it.", flush=True)
        blocks.block_thread()


async def _stay_here(request: Request, following: RequestResponseEndpoint) -> Response:
    """Let no answer make the browser ask another server."""
    answer = await following(request)
    answer.headers["Content-Security-Policy"] = _POLICY
    return answer


def _target(by: str, scale: float, size: str) -> Target:
    if by == BY_SCALE:
        return Target(round(float(scale), 2))
    width, height = parse_size(size.strip())
    return Target(width=width, height=height)


def compared(job: jobs.Job) -> tuple[str, str] | None:
    """Pictures of the original and of the enlarged one, of one size, that any browser shows.

    None for a clip.
    """
    if jobs.is_clip(job.source):
        return None
    after = _shown(job.target, _PREVIEW, size="down")
    before = _shown(job.source, after.width, height=after.height, size="force")
    files = [job.target.parent / f"{side}-{job.target.name}.webp" for side in ("before", "after")]
    for image, file in zip((before, after), files, strict=True):
        image.write_to_file(str(file), Q=92)
    return str(files[0]), str(files[1])


def _shown(path: Path, width: int, **sized: Any) -> pyvips.Image:
    """A picture in sRGB at another size."""
    try:
        return pyvips.Image.thumbnail(str(path), width, export_profile="srgb", **sized)
    except pyvips.Error:  # such as BMP, which not every libvips reads
        pixels = image_file.read(path).pixels
        return pyvips.Image.new_from_array(pixels).thumbnail_image(width, **sized)


def _downloads(visit: Visit) -> list[str]:
    """The enlarged files, and before several a zip of them."""
    paths = [job.target for job in visit.made.values()]
    if len(paths) > 1:
        archive = paths[0].parent / "enlarged.zip"
        with zipfile.ZipFile(archive, "w") as whole:  # pictures are compressed already
            for path in paths:
                whole.write(path, path.name)
        paths.insert(0, archive)
    return [str(path) for path in paths]


def _status(status: Status) -> str:
    """How far the work is, and what became of each file."""
    lines = []
    if status.name:
        left = "" if status.remaining is None else f", {_duration(status.remaining)} left"
        lines.append(
            f'<div role="status">{html.escape(status.name)}: {status.fraction:.0%}{left}</div>'
            f'<progress max="1" value="{status.fraction:.3f}"></progress>'
        )
    else:
        said = "Cancelled" if status.stopped else "Done"
        lines.append(f'<div role="status">{said} after {_duration(status.seconds)}.</div>')
    items = "".join(f"<li>{_line(outcome)}</li>" for outcome in status.outcomes)
    return "".join(lines) + (f"<ul>{items}</ul>" if items else "")


def _line(outcome: Outcome) -> str:
    name = html.escape(outcome.job.source.name)
    written = outcome.written
    if written is None:
        # Messages name the upload's path on the server: only its name is shown.
        told = (outcome.failure or "skipped").replace(str(outcome.job.source), "this file")
        return f'{name}: <span class="refused">{html.escape(told)}</span>'
    height, width = written.size
    chosen = f", {written.by}" if written.by else ""
    notes = "".join(f" {html.escape(note)}." for note in written.notes)
    return f"{name}: {width}x{height} in {outcome.seconds:.1f} s{chosen}.{notes}"


def _refusal(told: str) -> str:
    return f'<div role="alert" class="refused">{html.escape(told)}</div>'


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""Which file goes where: single files, folders, and standard input and output."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UpscaleError
from ..images import image_file
from ..video.clip import SUFFIXES as CLIP_SUFFIXES

PIPE = "-"
"""Standard input or output, in the place of a file."""
ALIASES = {"jpeg": "jpg", "tif": "tiff"}


@dataclass
class Job:
    """One file to read and the one to write; `problem` is why it cannot be done."""

    source: Path
    target: Path
    problem: str | None = None

    @property
    def name(self) -> str:
        """The input's name in messages."""
        return "standard input" if str(self.source) == PIPE else str(self.source)


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Attributes:
        size: (H_out, W_out).
        notes: sentences on what was read differently from what the file says.
        lossy: whether the input's compression has left traces.
        models: the shipped models that were chosen for it; none if one was asked for.
    """

    size: tuple[int, int]
    notes: list[str]
    lossy: bool
    models: list[str]

    @property
    def by(self) -> str:
        """ "by A, then B (lossy input)", or nothing where a model was asked for."""
        kind = "lossy" if self.lossy else "lossless"
        return f"by {', then '.join(self.models)} ({kind} input)" if self.models else ""


@dataclass
class Plan:
    """The jobs of a run, and what lies in its folders that is not read.

    Attributes:
        jobs: in the order of the inputs.
        unread: (path, why) of pictures and folders that are left out.
    """

    jobs: list[Job] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)


def plan(
    inputs: Sequence[str | Path],
    output: str | Path | None,
    format: str = "same",
    suffix: str = "",
) -> Plan:
    """Where each input goes.

    One file goes to `output` if that ends like a picture and is not a folder; everything else into
    the folder `output`, folders recursively and mirrored (several by their own names), or beside
    itself if there is only a `suffix`. "-" is standard input and standard output.

    Arguments:
        inputs: files and folders.
        output: a file, a folder, or None for each input's own folder.
        format: "same" keeps each file's ending (PNG for what cannot be written); for a single
            output file its own ending decides.
        suffix: put behind each name, before its ending; not for a single output file.

    Raises:
        UpscaleError: a folder holds no image, or the output cannot be a folder or not be written.
        ImageError: the output's ending cannot be written.
    """
    _refuse_nonsense(inputs, output, suffix)
    format = _known_format(format)
    sources = [Path(item) for item in inputs]
    if output is not None and str(output) == PIPE:
        if len(sources) > 1 or sources[0].is_dir() or is_clip(sources[0]):
            raise UpscaleError("standard output takes one picture; give a folder for the output.")
        return Plan([Job(sources[0], Path(PIPE))])
    single = output is not None and _is_one_file(sources, output, suffix)
    if str(sources[0]) == PIPE and not single:
        raise UpscaleError("standard input has no name; give a file, or -, for the output.")
    if single:
        target = Path(str(output))
        clip = _refuse_mixed(sources[0], target)
        asked = format if clip else image_file.format_of(target)
        if format not in ("same", asked):
            raise UpscaleError(f"{target} asks for {asked}, but format for {format}; choose one.")
        done = Plan([Job(sources[0], target)])
    else:
        folder = None if output is None else Path(output)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UpscaleError(f"{folder} is a file; give a folder for the output.")
        done = _into_folders(sources, folder, format, suffix)
    for folder in {job.target.parent if output is None else Path(output) for job in done.jobs}:
        _refuse_unwritable(folder if folder.is_dir() else folder.parent)
    _rename_clashes(done.jobs)
    _refuse_clashes(done.jobs)
    return done


def is_clip(path: Path) -> bool:
    """Whether a file is a video, by its ending."""
    return path.suffix.lower() in CLIP_SUFFIXES


def _refuse_mixed(source: Path, target: Path) -> bool:
    """Whether both are clips; UpscaleError if one alone is."""
    if is_clip(source) and not is_clip(target):
        raise UpscaleError(
            f"{source} is a video, and {target} would not be: end the output in "
            f"{', '.join(sorted(CLIP_SUFFIXES))}."
        )
    if is_clip(target) and not is_clip(source):
        raise UpscaleError(f"{target} would be a video, but {source} is not one.")
    return is_clip(source)


def _refuse_nonsense(inputs: Sequence[str | Path], output: str | Path | None, suffix: str) -> None:
    """UpscaleError for empty paths, a suffix that is a path, and nowhere to write."""
    if any(not os.fspath(path) for path in [*inputs, *([] if output is None else [output])]):
        raise UpscaleError("a path is empty; an unset variable? Write . for the current folder.")
    if output is None and not suffix:
        raise UpscaleError(
            "no output is given: name a file or folder by --output, or write beside the originals "
            "by --suffix, such as --suffix _x4."
        )
    if "/" in suffix or os.sep in suffix or "\0" in suffix:
        raise UpscaleError(f"suffix is {suffix}; it becomes part of a name and cannot hold a path.")
    if sum(str(path) == PIPE for path in inputs) and len(inputs) > 1:
        raise UpscaleError("standard input is one picture; give it alone.")


def _known_format(format: str) -> str:
    name = ALIASES.get(format.lower(), format.lower())
    if name not in ("same", *image_file.FORMATS):
        raise UpscaleError(f"format is {format}; use same, {', '.join(image_file.FORMATS)}.")
    return name


def _is_one_file(sources: list[Path], output: str | Path, suffix: str) -> bool:
    """Whether the output is a file's name; UpscaleError if it is, but must be a folder."""
    path = Path(output)
    if os.fspath(output).endswith(("/", os.sep)) or path.is_dir() or not path.suffix:
        return False
    pictures = image_file.OUTPUT_SUFFIXES | image_file.KNOWN_SUFFIXES | CLIP_SUFFIXES
    several = len(sources) > 1 or sources[0].is_dir()
    if not several and suffix:
        raise UpscaleError(
            f"{path} is a complete file name; the suffix {suffix} applies to folders."
        )
    if several and path.suffix.lower() in pictures and not path.exists():
        what = f"{len(sources)} files" if len(sources) > 1 else f"the folder {sources[0]}"
        raise UpscaleError(f"{path} names one picture, but the input is {what}: give a folder.")
    return not several


def _into_folders(sources: list[Path], output: Path | None, format: str, suffix: str) -> Plan:
    """Jobs of several inputs, or of one that keeps its name."""
    done = Plan()
    for source in sources:
        if not source.is_dir():
            folder = source.parent if output is None else output
            done.jobs.append(Job(source, folder / _renamed(source.name, format, suffix)))
            continue
        base = source if output is None else output
        if output is not None and len(sources) > 1:
            base = output / source.resolve().name
        found = list(_walk(source, base, output, suffix, done.unread))
        if not found:
            rest = _counted(done.unread)
            raise UpscaleError(f"{source} holds no image that is read here{rest}.")
        for relative in found:
            target = base / relative.parent / _renamed(relative.name, format, suffix)
            done.jobs.append(Job(source / relative, target))
    return done


def _walk(
    folder: Path, base: Path, output: Path | None, suffix: str, unread: list[tuple[Path, str]]
) -> Iterator[Path]:
    """Images below a folder, relative to it, sorted; hidden ones and those in `output` left out.

    So are files that end in the suffix, where an earlier run has put its outputs among the inputs.
    Pictures of other kinds, and folders that are not entered, are added to `unread`.
    """

    def refused(error: OSError) -> None:
        unread.append((Path(error.filename), f"folder: {error.strerror}"))

    beside = suffix and _same(folder, base)
    for inside, folders, names in os.walk(folder, onerror=refused):
        here = Path(inside)
        shown = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in shown if (here / name).is_symlink()]
        unread.extend((here / name, "linked folder") for name in links)
        folders[:] = [
            name
            for name in shown
            if name not in links and (output is None or not _same(here / name, output))
        ]
        for name in sorted(names):
            ending = Path(name).suffix.lower()
            if name.startswith(".") or (beside and Path(name).stem.endswith(suffix)):
                continue
            if ending in image_file.INPUT_SUFFIXES or ending in CLIP_SUFFIXES:
                yield (here / name).relative_to(folder)
            elif ending in image_file.KNOWN_SUFFIXES:
                unread.append((here / name, ending))


def _counted(unread: list[tuple[Path, str]]) -> str:
    """ " (2 .heic, 1 linked folder are not)", or nothing."""
    kinds: dict[str, int] = defaultdict(int)
    for _, why in unread:
        kinds[why] += 1
    told = ", ".join(f"{count} {why}" for why, count in sorted(kinds.items()))
    return f" ({told} {'is' if len(unread) == 1 else 'are'} not)" if told else ""


def _renamed(name: str, format: str, suffix: str) -> str:
    """A file name with the suffix and the ending of `format`, or its own if it is of that."""
    path = Path(name)
    ending = path.suffix
    if is_clip(path):
        return f"{path.stem}{suffix}{ending}"
    known = image_file.format_of(path) if ending.lower() in image_file.OUTPUT_SUFFIXES else None
    if format == "same":
        ending = ending if known else ".png"
    elif known != format:
        ending = f".{format}"
    return f"{path.stem}{suffix}{ending}"


def _refuse_unwritable(folder: Path) -> None:
    """UpscaleError if the folder, or the one it would be made in, does not take files."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UpscaleError(f"{folder} is a file, so nothing can be written below it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UpscaleError(f"the folder {folder} cannot be written to; choose another output.")


def _rename_clashes(jobs: list[Job]) -> None:
    """Give the outputs of a.jpg and a.webp, as PNG, the names a_jpg.png and a_webp.png.

    An input that has the output's own ending keeps the plain name.
    """
    by_target = defaultdict(list)
    for job in jobs:
        by_target[_key(job.target)].append(job)
    for clashing in by_target.values():
        for job in clashing if len(clashing) > 1 else ():
            kind = job.source.suffix
            if kind and kind.lower() != job.target.suffix.lower():
                job.target = job.target.with_stem(f"{job.target.stem}_{kind[1:].lower()}")


def _refuse_clashes(jobs: list[Job]) -> None:
    """Mark jobs whose target is an input (also by a link), or another job's target."""
    inputs = {_identity(job.source): job.source for job in jobs if job.source.exists()}
    taken: dict[str, Path] = {}
    for job in jobs:
        key = _key(job.target)
        input_there = inputs.get(_identity(job.target)) if job.target.exists() else None
        if input_there is not None:
            job.problem = (
                f"{job.target} is the input {input_there}, and inputs are never overwritten: "
                "choose another output."
            )
        elif key in taken:
            job.problem = (
                f"{job.source} would be written to {job.target}, like {taken[key]}: rename one, or "
                "choose another format."
            )
        taken.setdefault(key, job.source)


def _key(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path))


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and os.path.samefile(a, b)

"""A copy of a dataset whose videos are H.264 with key frames only, which is several times as fast to read in random order.

Only video files change, each for itself, and what `info.json` says of them: rows, statistics, timestamps, and where episodes lie in
files stay as they are. So it is the same for LeRobot v2.0, v2.1 and v3.0.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np

from ..utils.files import atomic_write, full_disk_named
from .hub import DatasetSource
from .lerobot_features import write_json
from .lerobot_metadata import load_metadata
from .video import open_video

#: Formats of pixels that x264 takes as they are; others become yuv420p.
_KEPT_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")
_STATE = "reencoding.json"
#: x264's quality to begin with, and by how much it is raised for a video of which a frame is too far from the original.
_CRF, _CRF_STEP = 28, 5


@dataclass
class VideoReport:
    """What became of one video: bytes before and after, frames, and the worst frame's peak signal-to-noise ratio (dB)."""

    bytes_before: int
    bytes_after: int
    frames: int
    worst_psnr: float


def reencode(
    path_or_repo_id: str | Path,
    output: str | Path,
    *,
    min_psnr: float = 40.0,
    lossless: bool = False,
    workers: int = 1,
    report: Callable[[int, int], None] | None = None,
) -> list[VideoReport]:
    """Write a dataset again with fast videos.

    It is written into a folder `.NAME.partial` beside `output`, which takes its name at the end. If the command is stopped, the same
    one goes on with the videos that are missing.

    Args:
        path_or_repo_id: a LeRobot folder or Hub repository, v2.0, v2.1 or v3.0.
        output: the new dataset's folder; it must not exist, or be empty.
        min_psnr: no frame is further from the original than this peak signal-to-noise ratio, in dB over all planes, after
            conversion to 8-bit yuv420p where x264 needs it.
        lossless: decoded frames are those of the original, bit for bit; files are several times as large.
        workers: processes that encode.
        report: called after each video with the number that is done and that of all.

    Raises:
        ValueError: the dataset has no videos, what is half done was begun with other settings, or `lossless` is set and the pixel
            format of a video would have to be converted.
        FileExistsError: `output` exists and is not empty.
        OSError: a video is missing or damaged.
    """
    if not 20 <= min_psnr <= 100:
        raise ValueError(f"min_psnr is {min_psnr}; give decibels from 20 to 100, 40 is hard to tell from the original")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not empty; choose another folder or remove it")
    source = DatasetSource(path_or_repo_id)
    metadata = load_metadata(source.root)
    if not metadata.videos:
        raise ValueError(
            f"{source.name} has no videos: its images are in its tables, and there is nothing to re-encode"
        )
    source.fetch(metadata.files(), metadata.files())
    videos = sorted({path for files in metadata.videos.values() for path in files.paths})
    work = output.absolute().parent / f".{output.name}.partial"
    settings = {
        "source": str(source.root.absolute()),
        "info": (source.root / "meta" / "info.json").read_text(encoding="utf-8"),
        "min_psnr": None if lossless else min_psnr,
    }
    with full_disk_named(work):
        done = _begin(work, settings)
        to_do = [path for path in videos if path not in done]
        encode = partial(reencode_video, min_psnr=math.inf if lossless else min_psnr)
        for number, (path, made) in enumerate(_each(encode, source.root, work, to_do, workers), len(done) + 1):
            done[path] = asdict(made)
            _write_state(work, settings, done)
            if report is not None:
                report(number, len(videos))
        _copy_rest(source.root, work, set(videos))
        _write_info(work, metadata.videos)
        (work / _STATE).unlink()
        if output.exists():
            output.rmdir()
        work.rename(output)
    return [VideoReport(**made) for made in done.values()]


def _begin(work: Path, settings: dict) -> dict[str, dict]:
    """Return the videos that are done already, with what became of them."""
    file = work / _STATE
    if not work.exists():
        work.mkdir(parents=True)
        _write_state(work, settings, {})
    state = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if state.get("settings") != settings:
        raise ValueError(f"{work} was begun with other settings or from another dataset; remove it to start anew")
    return state["done"]


def _write_state(work: Path, settings: dict, done: dict) -> None:
    with atomic_write(work / _STATE) as partial_file:
        partial_file.write_text(json.dumps({"settings": settings, "done": done}), encoding="utf-8")


def _each(encode, root: Path, work: Path, paths: list[str], workers: int) -> Iterator[tuple[str, VideoReport]]:
    sources, targets = [root / path for path in paths], [work / path for path in paths]
    if workers <= 1:
        yield from zip(paths, map(encode, sources, targets), strict=True)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from zip(paths, pool.map(encode, sources, targets), strict=True)


def _copy_rest(root: Path, work: Path, videos: set[str]) -> None:
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        hidden = name.parts[0].startswith(".")  # caches, and Git's files
        if file.is_file() and not hidden and name.as_posix() not in videos:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, work / name)


def _write_info(work: Path, videos: dict) -> None:
    """Say in `info.json` what the videos are now."""
    file = work / "meta" / "info.json"
    info = json.loads(file.read_text(encoding="utf-8"))
    for camera, files in videos.items():
        with open_video(work / files.paths[0]) as container:
            codec = container.streams.video[0].codec_context
            what = {"video.codec": "h264", "video.pix_fmt": codec.pix_fmt}
        feature = info["features"][camera]
        entry = feature.setdefault("video_info" if "video_info" in feature and "info" not in feature else "info", {})
        entry |= what | ({"video.g": 1} if "video.g" in entry else {})
        for old in ("video.crf", "video.preset", "video.fast_decode", "video.extra_options"):  # of the encoder before
            entry.pop(old, None)
    write_json(file, info)


def reencode_video(source: str | Path, target: str | Path, min_psnr: float) -> VideoReport:
    """Write a video again as H.264 with key frames only, at the same timestamps, and compare it with the original.

    Args:
        min_psnr: in dB, after conversion to 8-bit yuv420p where x264 needs it; the quality is raised until no frame is below.
            Infinity: lossless.

    Raises:
        ValueError: without loss, and the pixel format would have to be converted.
        OSError: the video is damaged, or cannot be written.
    """
    source, target = Path(source), Path(target)
    crf = _CRF
    if math.isinf(min_psnr):
        crf = 0
        _check_kept(source)
    with atomic_write(target) as part:
        while True:
            frames = _encode(source, part, crf)
            worst = min(_psnr(source, part), default=math.inf)
            if worst >= min_psnr:
                break
            if crf == 0:
                raise OSError(
                    f"{source}: after encoding without loss, a frame differs ({worst:.1f} dB); report this as a bug"
                )
            crf = max(crf - _CRF_STEP, 0)
    return VideoReport(source.stat().st_size, target.stat().st_size, frames, worst)


def _check_kept(path: Path) -> None:
    with open_video(path) as container:
        pixels = container.streams.video[0].codec_context.pix_fmt
    if pixels not in _KEPT_FORMATS:
        raise ValueError(
            f"{path} has pixels of the format {pixels}, which would be converted to yuv420p, with loss; without loss possible: "
            f"{', '.join(_KEPT_FORMATS)}. Leave lossless out"
        )


def _frames(container: av.container.InputContainer, path: Path) -> Iterator[av.VideoFrame]:
    stream = container.streams.video[0]
    stream.codec_context.options = {"err_detect": "explode"}
    stream.codec_context.thread_count = 1
    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        raise OSError(f"{path}: decoding failed ({error.strerror}); the file is damaged") from error


def _encode(source: Path, target: Path, crf: int) -> int:
    """Return the number of frames."""
    number = 0
    with open_video(source) as original, av.open(str(target), mode="w") as container:
        given = original.streams.video[0]
        stream = container.add_stream("libx264", rate=given.average_rate)
        to, of = stream.codec_context, given.codec_context
        pixels = of.pix_fmt if of.pix_fmt in _KEPT_FORMATS else "yuv420p"
        stream.width, stream.height, stream.pix_fmt = of.width, of.height, pixels
        stream.time_base = to.time_base = given.time_base
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):
            setattr(to, name, getattr(of, name))
        to.gop_size, to.max_b_frames, to.thread_count = 1, 0, 1
        to.options = {"crf": str(crf), "preset": "fast", "tune": "fastdecode", "forced-idr": "1"}
        for frame in _frames(original, source):
            picture = frame if frame.format.name == pixels else frame.reformat(format=pixels)
            picture.pts, picture.time_base = frame.pts, given.time_base
            picture.pict_type = av.video.frame.PictureType.I
            container.mux(stream.encode(picture))
            number += 1
        container.mux(stream.encode(None))
    return number


def _psnr(source: Path, target: Path) -> Iterator[float]:
    """Yield each frame's peak signal-to-noise ratio, and check that frames and timestamps are those of the original."""
    with open_video(source) as original, open_video(target) as made:
        for index, (before, after) in enumerate(zip_longest(_frames(original, source), _frames(made, target))):
            if before is None or after is None or abs(_seconds(before) - _seconds(after)) > 1e-3:
                raise OSError(f"{source}: frame {index} is not at its place after encoding; the file may have a gap")
            if before.format.name != after.format.name:
                before = before.reformat(format=after.format.name)
            error = (before.to_ndarray().astype(np.int16) - after.to_ndarray()).astype(np.float32)
            mean = float(np.square(error).mean())
            yield math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def _seconds(frame: av.VideoFrame) -> float:
    return float(frame.pts * Fraction(frame.time_base))


__all__ = ["VideoReport", "reencode", "reencode_video"]

"""Writing frames into an mp4 file (H.264, by PyAV)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import numpy as np

from ..utils.files import atomic_write

__all__ = ["VideoWriter", "write_video"]


class VideoWriter:
    """An mp4 file (H.264, yuv420p) that grows frame by frame; frame k is shown at k / fps seconds.

    There are no B-frames, so a frame is decoded from at most `gop_size` frames. One thread encodes, so that with the same build
    of x264 equal frames give equal bytes if they are at least 64 pixels wide and high. Smaller ones are not always encoded alike.

    Args:
        path: the file; its folder exists.
        fps: frames per second.
        height, width: of the frames, both even as yuv420p needs.
        crf: x264's quality, 0 (lossless) to 51; 18 is hard to tell from the original.
        gop_size: distance between key frames; short ones make random access fast and files larger.

    Raises:
        ValueError: odd or non-positive height or width.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str | Path, fps: int, height: int, width: int, crf: int = 18, gop_size: int = 2):
        if height < 2 or width < 2 or height % 2 or width % 2:
            raise ValueError(f"frames are {height} x {width} pixels; H.264 with yuv420p needs even height and width")
        self.path = Path(path)
        self.num_frames = 0
        self.num_bytes = 0
        self._shape = (height, width, 3)
        self._container = av.open(str(path), mode="w")
        self._stream = self._container.add_stream("libx264", rate=fps)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, "yuv420p"
        self._stream.codec_context.gop_size = gop_size
        self._stream.codec_context.max_b_frames = 0
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {"crf": str(crf), "preset": "fast", "forced-idr": "1"}

    def add(self, frame: np.ndarray, key_frame: bool = False) -> None:
        """Append one frame, uint8 (height, width, 3) in RGB; `key_frame` makes it decodable by itself.

        Raises:
            ValueError: another shape or dtype.
        """
        if frame.shape != self._shape or frame.dtype != np.uint8:
            raise ValueError(f"frame is {frame.dtype} {frame.shape}; the video takes uint8 {self._shape}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self.num_frames
        picture.time_base = 1 / self._stream.average_rate
        if key_frame:
            picture.pict_type = av.video.frame.PictureType.I
        self._mux(self._stream.encode(picture))
        self.num_frames += 1

    def close(self) -> None:
        """Finish the file. Further calls do nothing."""
        if self._container is not None:
            self._mux(self._stream.encode(None))
            self._container.close()
            self._container = None

    def _mux(self, packets) -> None:
        for packet in packets:
            self.num_bytes += packet.size
            self._container.mux(packet)


def write_video(path: str | Path, frames: Iterable[np.ndarray], fps: int) -> Path:
    """Write frames, uint8 (H, W, 3), as an mp4 under a temporary name that is renamed when it is complete.

    Raises:
        ValueError: no frames, odd height or width, or frames that differ in shape.
        OSError: the file cannot be written.
    """
    path = Path(path)
    frames = list(frames)
    if not frames:
        raise ValueError(f"no frames to write into {path}")
    with atomic_write(path) as partial:
        writer = VideoWriter(partial, fps, *frames[0].shape[:2], gop_size=fps)
        for frame in frames:
            writer.add(np.asarray(frame))
        writer.close()
    return path

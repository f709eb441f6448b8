"""Frames of mp4 files by timestamp: many files stay open, and a few decoders, which don't seek if reading on gets there.

An open file costs little memory, a decoder megabytes and, to open, as much time as a frame. Files of one dataset mostly hold the
same kind of stream, so that any decoder will do for any of them.

A decoder of reordered frames (H.264 with B-frames) holds back what it has decoded until it has seen some more packets. Reading
on in order, that costs nothing. For frames in random order it is flushed, which costs a seek afterwards.
"""

import errno
import math
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Generator, Hashable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import av
import pyarrow as pa
from av.video.reformatter import VideoReformatter
from PIL import Image

from ..utils.files import lfs_pointer
from .checks import grey_bits

# Decoding this many frames onwards is cheaper than a seek, which flushes the decoder and starts at a key frame again.
_FRAMES_WORTH_DECODING = 3
# Frames this near to the wanted one are always decoded, so that its neighbours are known.
_NEIGHBOURS = 2
# Of a video whose metadata don't say its size.
_MAX_PIXELS = 2**26
# Decoders of a process: one per kind of stream that is read in random order, one per camera that is read in order.
_DECODERS = 32
# Frames that are read elsewhere before a reader's own decoder is given up: it was not read in order, or has ended.
_FRAMES_KEPT_FOR = 100


def open_video(path: str | Path) -> av.container.InputContainer:
    """Open a file with a video stream in it.

    Raises:
        OSError: the file is missing, truncated or without video.
    """
    try:
        container = av.open(str(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except av.FFmpegError as error:
        full = error.errno in (errno.EMFILE, errno.ENFILE)
        if pointer := lfs_pointer(path):
            raise OSError(f"{path} cannot be opened: {pointer}") from error
        remedy = "lower max_open_videos, or raise `ulimit -n`" if full else "it may be truncated, download it again"
        raise OSError(f"{path} cannot be opened ({error.strerror}); {remedy}") from error
    if not container.streams.video:
        container.close()
        raise OSError(f"{path} has no video stream")
    return container


def file_version(path: str | Path) -> tuple[int, int]:
    """Return size and modification time (ns) of a file, which tell a rewritten file from the one before.

    Raises:
        FileNotFoundError: the file is missing.
    """
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    return stat.st_size, stat.st_mtime_ns


@dataclass(eq=False)
class Decoder:
    """A decoder, and what makes RGB of its frames: both take megabytes, and fit any stream of their kind."""

    codec: av.VideoCodecContext
    reformatter: VideoReformatter
    last_used: int = 0  # counted in frames of the pool


class DecoderPool:
    """At most `capacity` decoders, lent to the readers that decode.

    Readers in random order share one for each kind of stream: they have no position to keep. A reader in order has its own, until
    about a hundred frames have been read elsewhere without it.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lent: OrderedDict[Hashable, Decoder] = OrderedDict()  # to a reader, or all of a kind
        self._latest: dict[Hashable, VideoReader] = {}  # by kind, who used the common one last
        self._frames = 0

    def lend(self, reader: "VideoReader", here_and_there: bool) -> tuple[Decoder, bool]:
        """Return a decoder for the reader's stream, and whether it is as this reader left it."""
        latest = self._latest.get(reader.kind)
        was_latest = latest is reader
        common = reader not in self._lent and (here_and_there or was_latest)
        borrower = reader.kind if common else reader
        decoder = self._lent.pop(borrower, None)
        kept = decoder is not None and (was_latest or not common)
        if decoder is None:
            while len(self._lent) >= self.capacity:
                self._give_up_oldest()
            decoder = reader.new_decoder()
        self._lent[borrower] = decoder
        self._frames += 1
        decoder.last_used = self._frames
        if next(iter(self._lent.values())).last_used < self._frames - _FRAMES_KEPT_FOR:
            self._give_up_oldest()
        if common and not was_latest:
            self._latest[reader.kind] = reader
            if latest is not None:
                latest.release()
        return decoder, kept

    def _give_up_oldest(self) -> None:
        borrower, _ = self._lent.popitem(last=False)
        self._latest.pop(borrower, borrower).release()


class VideoReader:
    """One open mp4.

    Args:
        path: the video file.
        fps: frames per second of the dataset; a frame is found when it is at most half of 1/fps away.
        decoders: which lend it a decoder. Default: it has one of its own.
        max_pixels: width times height that frames may have. Default: 67 million.

    Raises:
        OSError: the file is missing, truncated or without video, or its frames are too large.
    """

    def __init__(
        self, path: str | Path, fps: float, decoders: DecoderPool | None = None, max_pixels: int | None = None
    ) -> None:
        self.path = Path(path)
        self.version = file_version(path)
        self._container = open_video(path)
        self._stream = stream = self._container.streams.video[0]
        self._decoders = DecoderPool(1) if decoders is None else decoders
        self._index = stream.index_entries
        self._ticks_per_second = 1 / float(stream.time_base)
        self._frame_ticks = self._ticks_per_second / fps
        # The index holds decode timestamps, which lie before the presentation ones when frames are reordered.
        first_decode = self._index[0].timestamp if len(self._index) else 0
        self._reordering = (stream.start_time or 0) - first_decode
        # FFmpeg's own decoders can leave out frames that no other frame is predicted from.
        codec = stream.codec_context
        if codec.width * codec.height > (max_pixels or _MAX_PIXELS):
            self._container.close()
            raise OSError(
                f"{path} has frames of {codec.width} x {codec.height} pixels; by meta/info.json, at most "
                f"{max_pixels or _MAX_PIXELS:,} pixels are expected"
            )
        self._can_skip = codec.name in ("h264", "hevc")
        if grey_bits(codec.pix_fmt or "") > 8:
            raise OSError(
                f"{path} has pixels of format {codec.pix_fmt}, of which 8-bit RGB would keep 256 levels; leave it out"
            )
        colours = codec.color_range, codec.colorspace, codec.color_primaries, codec.color_trc
        self.kind: Hashable = codec.name, codec.width, codec.height, codec.pix_fmt, codec.extradata, colours
        self._last_target = 0.0
        self._demuxer: Generator | None = None
        self.release()

    def close(self) -> None:
        self.release()
        self._container.close()

    def release(self) -> None:
        """Release a decoder that is no longer this reader's, and the frames that were kept to continue with it."""
        self._decoder: Decoder | None = None
        self._rewind()

    def new_decoder(self) -> Decoder:
        """Return a decoder for this file's stream, or any other of the same `kind`."""
        # The context of another opening of the file: seeking would flush that of our own, whoever had it.
        with open_video(self.path) as container:
            codec = container.streams.video[0].codec_context
        # One thread: loader workers are the parallelism, and frame threads would delay the first frame after a seek.
        codec.thread_count = 1
        # Without this the decoder paints over damaged data with what was there before, and says nothing.
        # A stream can also claim another size than its file: more than that is not decoded. FFmpeg aligns both sides.
        most = (codec.width + 64) * (codec.height + 64)
        codec.options = {"err_detect": "explode", "max_pixels": str(most)}
        return Decoder(codec, VideoReformatter())

    def frame_at(self, timestamp: float) -> Image.Image:
        """Return the frame nearest to `timestamp`, in RGB.

        Args:
            timestamp: seconds from the start of the file.

        Raises:
            OSError: no frame within half a frame's duration, or the data is damaged.
        """
        target = timestamp * self._ticks_per_second
        # Whether the next request will probably not follow on this one, judging by how this one follows on the last.
        last, self._last_target = self._last_target, target
        here_and_there = not 0 <= target - last <= (_FRAMES_WORTH_DECODING + 1) * self._frame_ticks
        self._decoder, kept = self._decoders.lend(self, here_and_there)
        if not kept:
            self._rewind()
        for attempt in range(3):
            try:
                frame = self._decode_to(target, here_and_there or attempt > 0, attempt)
                break
            except av.FFmpegError as error:
                self._rewind()
                if attempt == 2:
                    raise OSError(
                        f"{self.path}: decoding at {timestamp:.3f} s failed ({error.strerror}); the file is damaged"
                    ) from error
        if frame is None or abs(frame.pts - target) > self._frame_ticks / 2:
            found = (
                "none follows" if frame is None else f"the nearest is at {frame.pts / self._ticks_per_second:.3f} s"
            )
            raise OSError(f"{self.path}: no frame at {timestamp:.3f} s, {found}; the video may be truncated")
        return self._picture(frame)

    def _picture(self, frame: av.VideoFrame) -> Image.Image:
        # Pillow keeps RGB in four bytes per pixel: pixels that come in that form are taken over instead of copied. FFmpeg 8
        # leaves the last columns of such a picture unwritten if the width is not a multiple of 8.
        if frame.width % 8 == 0:
            plane = self._decoder.reformatter.reformat(frame, format="rgba", threads=1).planes[0]
            if plane.line_size == 4 * frame.width:
                pixels = pa.Array.from_buffers(pa.uint32(), frame.width * frame.height, [None, pa.py_buffer(plane)])
                return Image.fromarrow(pixels, "RGB", (frame.width, frame.height))
        return Image.fromarray(self._decoder.reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())

    def _rewind(self) -> None:
        """Forget what was read and decoded: the next frame needs a seek."""
        # PyAV 18 leaks 150 bytes for one that is left where it is, in the midst of what is freed: the heap grows without end.
        if self._demuxer is not None:
            self._demuxer.close()
        self._demuxer = None
        self._packets = iter(())  # what the file holds from the last seek on
        self._decoded: deque[av.VideoFrame] = deque()
        self._emptied = False  # whether the decoder was made to give away all it had, and needs a seek
        self._frame = None  # the latest frame that was looked at
        self._previous = None  # the one before
        self._needed_from = -math.inf  # what is damaged earlier does not matter

    def _decode_to(self, target: float, here_and_there: bool, attempt: int) -> av.VideoFrame | None:
        """Return the frame nearest to `target` of those around it.

        The second attempt seeks, as what comes before or after the frame may be damaged. The third begins a group of
        pictures earlier, whatever is wrong with that: those of an open group may be predicted from it, or refer to it.
        """
        # Timestamps are stored as float32 and offsets as sums of durations: a tenth of a frame early still counts.
        slack = self._frame_ticks / 10
        if attempt or not self._is_ahead(target, slack):
            self._seek(target, slack, attempt == 2)
        while self._frame is None or self._frame.pts < target - slack:
            following = self._next(target, slack, here_and_there)
            if following is None:
                break
            self._previous, self._frame = self._frame, following
        if self._emptied or (self._previous and self._previous.pts < target - _NEIGHBOURS * self._frame_ticks):
            self._previous = None  # frames between the two may have been left out
        candidates = [frame for frame in (self._previous, self._frame) if frame is not None]
        return min(candidates, key=lambda frame: abs(frame.pts - target), default=None)

    def _next(self, target: float, slack: float, here_and_there: bool) -> av.VideoFrame | None:
        """Return the next frame on the way to `target`, possibly without some that no other frame needs."""
        decoder = self._decoder.codec
        while not self._decoded and not self._emptied:
            packet = next(self._packets, None)
            if packet is None:
                return None
            if self._can_skip and packet.pts is not None:
                far = packet.pts < target - _NEIGHBOURS * self._frame_ticks
                decoder.skip_frame = "NONREF" if far else "DEFAULT"
            try:
                self._decoded.extend(decoder.decode(packet))
            except av.FFmpegError:
                if packet.pts is None or packet.pts >= self._needed_from:
                    raise
            arrived = packet.pts is not None and abs(packet.pts - target) <= slack
            if here_and_there and arrived and (not self._decoded or self._decoded[-1].pts < target - slack):
                self._decoded.extend(decoder.decode(None))
                self._emptied = True
        return self._decoded.popleft() if self._decoded else None

    def _is_ahead(self, target: float, slack: float) -> bool:
        """Return whether decoding on from here reaches `target` sooner than a seek would, or has just reached it."""
        if self._frame is None:
            return False
        oldest = self._frame if self._previous is None else self._previous
        if target < oldest.pts - slack:
            return False
        if self._emptied:
            return target <= self._frame.pts + slack
        if target - self._frame.pts <= _FRAMES_WORTH_DECODING * self._frame_ticks + slack:
            return True
        key = self._key_frame_before(target + slack)
        return key is not None and key + self._reordering <= self._frame.pts

    def _seek(self, target: float, slack: float, group_before: bool) -> None:
        """Seek the last key frame at or before `target`, or the one before that."""
        position = int(target + slack)
        needed_from = -math.inf
        while True:
            self._rewind()
            if self._decoder.codec.is_open:
                self._decoder.codec.flush_buffers()
            self._container.seek(position, stream=self._stream, backward=True)
            self._demuxer = packets = self._container.demux(self._stream)
            first = next(packets, None)
            if self._reordering and first is not None and first.pts is not None:
                # Frames of an open group that are shown before its key frame are predicted from the group before.
                packets = (packet for packet in packets if packet.pts is None or packet.pts >= first.pts)
            self._packets = packets if first is None else chain([first], packets)
            if first is None or first.pts is None:
                return
            if first.pts <= target + slack:
                self._needed_from = needed_from = max(first.pts, needed_from)
                if not group_before:
                    return
            group_before = group_before and first.pts > target + slack
            # Reordered streams can show a key frame later than its place in the index says: take the one before.
            earlier = self._key_frame_before(first.dts + self._reordering - 1)
            if earlier is None or earlier + self._reordering >= position:
                return
            position = earlier + self._reordering

    def _key_frame_before(self, ticks: float) -> int | None:
        """Return the decode timestamp of the last key frame whose presentation is at or before `ticks`."""
        entry = self._index.search_timestamp(int(ticks - self._reordering), backward=True, any_frame=False)
        return self._index[entry].timestamp if entry >= 0 else None


class VideoReaderCache:
    """The most recently used `VideoReader`s of this process, at most `capacity` of them open at a time, and their decoders.

    Args:
        capacity: files; no more than a quarter of those that the process may open are used.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"the number of open videos must be at least 1, got {capacity}")
        self.capacity = capacity
        self._most = min(capacity, _openable_files() // 4)
        self._readers: OrderedDict[str, VideoReader] = OrderedDict()
        self._decoders = DecoderPool(_DECODERS)
        self._process = os.getpid()
        self._lock = threading.Lock()  # a file and a decoder are at one place at a time

    def __getstate__(self) -> dict:
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["capacity"])

    def frame_at(
        self,
        path: str,
        timestamp: float,
        fps: float,
        version: tuple[int, int] | None = None,
        max_pixels: int | None = None,
    ) -> Image.Image:
        """Do what `VideoReader.frame_at` does, for the video at `path`; from any thread.

        Args:
            max_pixels: as for `VideoReader`.
            version: an open file of another `file_version` is opened anew. Default: what is open stays open.
        """
        if self._process != os.getpid():
            # A forked worker shares its parent's file positions: it must open files of its own.
            self.__init__(self.capacity)
        with self._lock:
            reader = self._readers.pop(path, None)
            if reader is not None and version not in (None, reader.version):
                reader.close()
                reader = None
            if reader is None:
                while len(self._readers) >= self._most:
                    self._readers.popitem(last=False)[1].close()
                reader = VideoReader(path, fps, self._decoders, max_pixels)
            self._readers[path] = reader
            return reader.frame_at(timestamp)


def _openable_files() -> int:
    """Return how many files this process may open, by its soft limit."""
    try:
        import resource
    except ImportError:  # Windows, whose C library opens 512
        return 512
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else max(limit, 4)

"""Writes small LeRobot v3.0 datasets in the layout of LeRobot 0.4.4, with a barcode in every frame to recognise it by.

Episodes share data and video files; each camera goes on to its next file at an episode of its own. Every episode is a
row group of its data file; its video is encoded alone and then appended to the shared file by stream copy.
"""

import json
import os
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scheduling import kept_scheduling

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports its settings to stderr for every file otherwise

CODECS = ["libx264", "libsvtav1"]
LENGTHS = [7, 12, 5, 9, 14]
TASKS = ["open the drawer", "push the button, then release it"]
# Which file each episode goes to.
DATA_FILES = [0, 0, 1, 2, 2]
VIDEO_FILES = {"observation.images.front": [0, 0, 0, 1, 1], "observation.images.wrist": [0, 1, 1, 1, 2]}
SIZES = {"observation.images.front": (96, 128), "observation.images.wrist": (64, 64)}


@dataclass
class Truth:
    """What was written: by episode the numbers, the instruction, and by camera the pixels before encoding."""

    fps: int
    cameras: list[str]
    state: list[np.ndarray] = field(default_factory=list)
    action: list[np.ndarray] = field(default_factory=list)
    timestamp: list[np.ndarray] = field(default_factory=list)
    task: list[str] = field(default_factory=list)
    pixels: list[dict[str, np.ndarray]] = field(default_factory=list)


def barcode(frame: int, episode: int, camera: int) -> np.ndarray:
    """The (3, 8) cells, True for light: two rows of frame index, one of episode, camera and a constant 1."""
    row = [bool(frame >> bit & 1) for bit in range(7, -1, -1)]
    last = (
        [bool(episode >> bit & 1) for bit in range(4, -1, -1)] + [bool(camera >> bit & 1) for bit in (1, 0)] + [True]
    )
    return np.array([row, row, last])


def read_barcode(image: np.ndarray) -> np.ndarray:
    """The cells that the middle of each (H // 8, W // 8) block of an (H, W, 3) image shows."""
    height, width = image.shape[0] // 8, image.shape[1] // 8
    rows = [height * row + height // 2 for row in range(3)]
    columns = [width * column + width // 2 for column in range(8)]
    return image[np.ix_(rows, columns)].mean(-1) > 127.5


def draw_frames(length: int, episode: int, camera: int, size: tuple[int, int]) -> np.ndarray:
    """(length, H, W, 3) uint8: a smooth pattern whose brightness alternates, under the barcode."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    frames = np.empty((length, height, width, 3), dtype=np.uint8)
    for frame in range(length):
        level = 70 + 60 * (frame % 3) + 10 * (episode % 3)
        channels = (level + 40 * y / height, level + 30 * x / width, level - 20 * camera + 0 * x)
        frames[frame] = np.stack(channels, axis=-1).clip(0, 255)
        cells = np.kron(barcode(frame, episode, camera), np.ones((height // 8, width // 8), dtype=bool))
        frames[frame, : cells.shape[0], : cells.shape[1]] = np.where(cells, 235, 20)[..., None]
    return frames


def write_v3(root: Path, codec: str, fps: int = 30, lengths: list[int] = LENGTHS) -> Truth:
    """Write a dataset of `len(lengths)` episodes to `root`; `codec` as PyAV calls it, or "image" for frames in parquet."""
    rng = np.random.default_rng(7)
    truth = Truth(fps, list(SIZES))
    for episode, length in enumerate(lengths):
        truth.state.append(rng.normal(size=(length, 8)).astype(np.float32))
        truth.action.append(rng.normal(size=(length, 7)).astype(np.float32))
        truth.timestamp.append((np.arange(length) / fps).astype(np.float32))
        truth.task.append(TASKS[episode % len(TASKS)])
        cameras = enumerate(SIZES.items())
        truth.pixels.append({name: draw_frames(length, episode, camera, size) for camera, (name, size) in cameras})

    _write_data(root, truth, stored_images=codec == "image")
    episodes = {
        "episode_index": list(range(len(lengths))),
        "tasks": [[task] for task in truth.task],
        "length": lengths,
        "data/chunk_index": [0] * len(lengths),
        "data/file_index": DATA_FILES,
        "dataset_from_index": np.cumsum([0, *lengths[:-1]]).tolist(),
        "dataset_to_index": np.cumsum(lengths).tolist(),
        "meta/episodes/chunk_index": [0] * len(lengths),
        "meta/episodes/file_index": [0] * len(lengths),
    }
    if codec != "image":
        for camera in SIZES:
            episodes |= _write_videos(root, camera, truth, codec)
    folder = root / "meta" / "episodes" / "chunk-000"
    folder.mkdir(parents=True)
    pq.write_table(pa.table(episodes), folder / "file-000.parquet")

    tasks = pa.table({"task_index": list(range(len(TASKS))), "__index_level_0__": TASKS})
    pq.write_table(tasks, root / "meta" / "tasks.parquet")
    (root / "meta" / "info.json").write_text(json.dumps(_info(truth, codec), indent=4))
    return truth


def _info(truth: Truth, codec: str) -> dict:
    vectors = {
        "observation.state": ["x", "y", "z", "rx", "ry", "rz", "pad", "gripper"],
        "action": ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
    }
    features = {
        camera: {
            "dtype": "image" if codec == "image" else "video",
            "shape": [*size, 3],
            "names": ["height", "width", "channels"],
        }
        for camera, size in SIZES.items()
    }
    features |= {key: {"dtype": "float32", "shape": [len(names)], "names": names} for key, names in vectors.items()}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    return {
        "codebase_version": "v3.0",
        "robot_type": "synthetic",
        "total_episodes": len(truth.action),
        "total_frames": sum(map(len, truth.action)),
        "total_tasks": len(TASKS),
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 500,
        "fps": truth.fps,
        "splits": {"train": f"0:{len(truth.action)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None
        if codec == "image"
        else "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
    }


def _write_data(root: Path, truth: Truth, stored_images: bool) -> None:
    folder = root / "data" / "chunk-000"
    folder.mkdir(parents=True)
    first = 0
    for file in sorted(set(DATA_FILES)):
        writer = None
        for episode in [e for e, its_file in enumerate(DATA_FILES) if its_file == file]:
            length = len(truth.action[episode])
            columns = {}
            if stored_images:
                columns = {
                    camera: [_png(image) for image in truth.pixels[episode][camera]] for camera in truth.cameras
                }
            columns |= {
                "observation.state": _vectors(truth.state[episode]),
                "action": _vectors(truth.action[episode]),
                "timestamp": pa.array(truth.timestamp[episode]),
                "frame_index": list(range(length)),
                "episode_index": [episode] * length,
                "index": list(range(first, first + length)),
                "task_index": [TASKS.index(truth.task[episode])] * length,
            }
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(
                folder / f"file-{file:03d}.parquet", table.schema, compression="snappy"
            )
            writer.write_table(table)
            first += length
        writer.close()


def _vectors(rows: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])


def _png(image: np.ndarray) -> dict:
    stream = BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return {"bytes": stream.getvalue(), "path": "frame.png"}


def encode(path: Path, frames: np.ndarray, codec: str, fps: int, key_frame_interval: int = 2) -> float:
    """Write (N, H, W, 3) uint8 frames as an mp4; returns its duration in seconds."""
    options = {"g": str(key_frame_interval), "crf": "30" if codec == "libsvtav1" else "18"}
    with kept_scheduling(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        return container.duration / av.time_base


def _write_videos(root: Path, camera: str, truth: Truth, codec: str) -> dict[str, list]:
    folder = root / "videos" / camera / "chunk-000"
    folder.mkdir(parents=True)
    files, starts, ends = VIDEO_FILES[camera], [], []
    for file in sorted(set(files)):
        parts, end = [], 0.0
        for episode in [e for e, its_file in enumerate(files) if its_file == file]:
            parts.append(folder / f"episode-{episode}.mp4")
            starts.append(end)
            end += encode(parts[-1], truth.pixels[episode][camera], codec, truth.fps)
            ends.append(end)
        _append(parts, folder / f"file-{file:03d}.mp4")
    prefix = f"videos/{camera}"
    return {
        f"{prefix}/chunk_index": [0] * len(files),
        f"{prefix}/file_index": files,
        f"{prefix}/from_timestamp": starts,
        f"{prefix}/to_timestamp": ends,
    }


def _append(parts: list[Path], path: Path) -> None:
    listing = path.with_suffix(".txt")
    listing.write_text("".join(f"file '{part}'\n" for part in parts))
    with av.open(str(listing), format="concat", options={"safe": "0"}) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0], opaque=True)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    for file in [listing, *parts]:
        file.unlink()


def edit_json(path: Path, **changes) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(path: Path, column: str, change) -> None:
    """Replace one numeric column of a parquet file by `change` of its (N, D) or (N,) array."""
    table = pq.read_table(path)
    values = np.array(table[column].to_pylist())
    new = change(values.astype(np.float64 if values.dtype.kind == "f" else values.dtype))
    array = pa.array(new.tolist(), type=table[column].type)
    pq.write_table(table.set_column(table.column_names.index(column), column, array), path)

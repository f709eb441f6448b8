"""What can be known about a dataset before training: from its tables, and about its images from the headers of files alone."""

import logging

import numpy as np
import pyarrow.parquet as pq
from tqdm import tqdm

from .lerobot import LeRobotDataset
from .statistics import content_key, read_cached, write_cached
from .tables import check_image_columns
from .video import open_video

logger = logging.getLogger(__name__)

_FAULTS_SHOWN = 5


def readable_part(dataset: LeRobotDataset) -> LeRobotDataset:
    """Return the dataset without the episodes whose tables cannot be read, such as those with a NaN; they are logged.

    Reads all tables, once for as long as the files stay the same and nothing is wrong with them.

    Raises:
        ValueError: no episode can be read.
    """
    faults = _unreadable_tables(dataset)
    if not faults:
        return dataset
    kept = [episode for episode in dataset.episode_indices if episode not in faults]
    shown = "; ".join(list(dict.fromkeys(faults.values()))[:_FAULTS_SHOWN])
    if not kept:
        raise ValueError(f"{dataset.name}: none of {len(faults)} episodes can be read: {shown}")
    part = dataset.with_episodes(kept)
    part.tables_are_sound = True
    logger.warning(
        "%s: left out are %d of %d episodes (%d of %d frames), whose tables cannot be read: %s",
        dataset.name,
        len(faults),
        dataset.num_episodes,
        len(dataset) - len(part),
        len(dataset),
        shown,
    )
    return part


def _unreadable_tables(dataset: LeRobotDataset) -> dict[int, str]:
    """Return by episode index what is wrong with its table."""
    reading = ["sound tables", dataset.identity["reading"], dataset.action_dim, dataset.state_dim]
    key = content_key(dataset.root, dataset.metadata.data.paths, reading)
    if dataset.tables_are_sound or read_cached(dataset.root, key) is not None:
        dataset.tables_are_sound = True
        return {}
    faults: dict[int, str] = {}
    damaged_files: dict[str, str] = {}
    seen: set[str] = set()
    progress = tqdm(dataset.episode_indices, desc=f"reading tables of {dataset.name}", unit="episode", disable=None)
    for row, episode in enumerate(progress):
        file = dataset.metadata.data.path(row)
        if file not in damaged_files:
            try:
                dataset.episode_table(row)
                continue
            except (OSError, ValueError) as error:
                fault = str(error)
            if fault in seen:  # the same for several episodes: it is the file, and need not be read again
                damaged_files[file] = fault
            seen.add(fault)
        faults[episode] = damaged_files.get(file) or fault
    # Faults are looked for anew each time: they may have been mended since, or not be in the file at all.
    if not faults:
        dataset.tables_are_sound = True
        write_cached(dataset.root, key, {"sound tables": len(dataset.metadata.data.paths)})
    return faults


def check_images(dataset: LeRobotDataset) -> None:
    """Open every video of the dataset and compare when it begins and ends with the tables; look for the columns of images.

    Takes about half a millisecond per file. Success is cached in `.hf_vla/` in the dataset's folder, under a key of the files' sizes
    and modification times. Damage inside a file is found by `hf-vla inspect --check`.

    Raises:
        OSError: a file is truncated or damaged, begins after its first episode, or ends before its last; a column of images
            is missing.
    """
    _check_columns(dataset)
    _check_videos(dataset)


def _check_columns(dataset: LeRobotDataset) -> None:
    stored = [camera for camera in dataset.cameras if camera not in dataset.metadata.videos]
    files = dataset.metadata.data.paths
    if not stored:
        return
    key = content_key(dataset.root, files, ["columns of images", stored])
    if read_cached(dataset.root, key) is not None:
        return
    for file in tqdm(files, desc=f"opening tables of {dataset.name}", unit="file", disable=None):
        check_image_columns(dataset.root / file, pq.read_schema(dataset.root / file, memory_map=True), stored)
    write_cached(dataset.root, key, {"tables": len(files)})


def _check_videos(dataset: LeRobotDataset) -> None:
    metadata = dataset.metadata
    files = [path for of_camera in metadata.videos.values() for path in of_camera.paths]
    if not files:
        return
    reading = ["begin and end of videos", metadata.episode_index.tolist(), metadata.length.tolist()]
    key = content_key(dataset.root, files, reading)
    if read_cached(dataset.root, key) is not None:
        return
    with tqdm(total=len(files), desc=f"opening videos of {dataset.name}", unit="file", disable=None) as progress:
        for camera, of_camera in metadata.videos.items():
            # When the last frame of each episode is shown, in seconds of its file.
            last_shown = metadata.video_start[camera] + (metadata.length - 1) / dataset.fps
            order = np.lexsort((metadata.video_start[camera], of_camera.file_of))
            first_rows = order[np.insert(np.diff(of_camera.file_of[order]) > 0, 0, True)]
            order = np.lexsort((last_shown, of_camera.file_of))
            # The last row of each file in that order is the episode that ends latest in it.
            last_rows = order[np.append(np.diff(of_camera.file_of[order]) > 0, True)]
            for first_row, row in zip(first_rows.tolist(), last_rows.tolist(), strict=True):
                path = dataset.root / of_camera.path(row)
                where = f"{dataset.name}: episode {metadata.episode_index[row]}, camera {camera!r}"
                try:
                    with open_video(path) as container:
                        stream = container.streams.video[0]
                        begin = float((stream.start_time or 0) * stream.time_base)
                        end = begin + float((stream.duration or 0) * stream.time_base)
                except OSError as error:
                    raise OSError(f"{where}: {error}") from error
                # Such as fragmented H.264 with reordered frames: all come late, and each would be taken for the one after it.
                first = metadata.video_start[camera][first_row]
                if begin > first + 0.5 / dataset.fps:
                    table, rows = dataset.episode_table(first_row)
                    first += table.timestamp[rows.start]
                if begin > first + 0.5 / dataset.fps:
                    raise OSError(
                        f"{dataset.name}: episode {metadata.episode_index[first_row]}, camera {camera!r}: {path} begins at "
                        f"{begin:.3f} s, but the episode's first frame is at {first:.3f} s; write the file again from 0 on"
                    )
                if end < last_shown[row] + 0.25 / dataset.fps:
                    raise OSError(
                        f"{where}: {path} ends at {end:.3f} s, but the last of the episode's {metadata.length[row]} "
                        f"frames is at {last_shown[row]:.3f} s"
                    )
                progress.update()
    write_cached(dataset.root, key, {"videos": len(files)})

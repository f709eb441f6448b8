"""Statistics that are streamed: exact at any size, whatever the values and however they arrive."""

import tracemalloc

import numpy as np
import pytest

from hf_vla.data import statistics as module
from hf_vla.data.statistics import compute_statistics, read_cached, write_cached


def streamed(parts):
    return compute_statistics({"action": lambda: iter(parts)}, sum(map(len, parts)), 1)["action"]


def check(rows, result):
    rows = rows.astype(np.float64)
    expected = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
    expected |= {"q01": np.quantile(rows, 0.01, axis=0), "q99": np.quantile(rows, 0.99, axis=0)}
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("size", [1, 2, 3, 101, 5000])
@pytest.mark.parametrize("batch", [16, 1 << 16])
def test_exact_in_any_parts(monkeypatch, size, batch):
    monkeypatch.setattr(module, "_BATCH", batch)
    rng = np.random.default_rng(size)
    columns = [
        rng.normal(size=size),
        1000 + 1e-3 * rng.normal(size=size),
        rng.integers(0, 2, size),
        np.full(size, -3.25),
        rng.standard_cauchy(size) * 1e6,
        rng.choice([-0.0, 0.0, 1e-40, -1e-40], size),
    ]
    rows = np.stack(columns, axis=1).astype(np.float32)
    check(rows, streamed(np.array_split(rows, min(size, 7))))


def test_memory_does_not_grow_with_the_rows():
    def parts(count):
        return (np.random.default_rng(index).normal(size=(1000, 4)).astype(np.float32) for index in range(count))

    peaks = []
    for count in (140, 1400):  # more than a batch is counted at a time; the rows of the second take 22 MB
        tracemalloc.start()
        result = compute_statistics({"action": lambda count=count: parts(count)}, 1000 * count, count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    np.testing.assert_allclose(result["action"]["q99"], 2.326, atol=0.02)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"action": '])
def test_damaged_cache_counts_for_nothing(tmp_path, caplog, content):
    write_cached(tmp_path, "key", {"action": {}})
    assert read_cached(tmp_path, "key") == {"action": {}}
    (file,) = (tmp_path / ".hf_vla").iterdir()
    file.write_bytes(content)
    assert read_cached(tmp_path, "key") is None
    assert f"{file} cannot be read" in caplog.text


def test_no_rows():
    with pytest.raises(ValueError, match="no rows"):
        streamed([])

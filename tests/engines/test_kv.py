"""The row cache against plain tensors."""

import torch

from satisfice.engines.kv import RowCache


def written(cache, layer=0):
    """All that the cache holds of `layer`, room for more included."""
    return cache._keys[layer], cache._values[layer]


def fill(cache, window, start, count):
    """One pass over the rows of `window` that writes `count` numbered tokens from `start` on."""
    rows = window.stop - window.start
    positions = (torch.arange(count) + start).expand(rows, -1)
    cache.aim(window, positions, start + count)
    result = []
    for layer in range(2):
        keys = positions[:, None, :, None] + 100.0 * torch.arange(*window.indices(10**6))[:, None, None, None]
        keys = (keys + 1000 * layer).expand(-1, 3, -1, 2)
        result.append(cache.update(keys, -keys, layer))
    return result


def test_rows_keep_their_tokens_when_moved_resized_and_copied():
    cache = RowCache()
    cache.resize(3, 8)
    fill(cache, slice(0, 3), 0, 4)
    keys, values = fill(cache, slice(1, 3), 4, 1)[1]
    assert keys.shape == (2, 3, 5, 2)
    assert keys[:, 0, :, 0].tolist() == [[1100 + n for n in range(5)], [1200 + n for n in range(5)]]
    assert torch.equal(values, -keys)
    assert cache.get_seq_length() == 5

    cache.move(2, 0, 0, 5)
    cache.resize(5, 20)
    pages = [(keys.clone(), values.clone()) for keys, values in cache.view(0, 0, 5)]
    assert [page[0][0, :, 0].tolist() for page in pages] == [
        [200.0 + n for n in range(5)],
        [1200.0 + n for n in range(5)],
    ]
    cache.put(4, 1, [(keys[:, 1:3], values[:, 1:3]) for keys, values in pages])
    assert written(cache)[0][4, 1, :5, 0].tolist() == [0, 201, 202, 0, 0]
    cache.move(1, 4, 2, 4)
    assert written(cache)[0][4, 1, :5, 0].tolist() == [0, 201, 102, 103, 0]
    cache.resize(2, 5)
    assert written(cache, 1)[1][0, 2, :, 1].tolist() == [-1200 - n for n in range(5)]


def test_rows_that_do_not_lie_side_by_side_take_part_together():
    cache = RowCache()
    cache.resize(4, 8)
    fill(cache, slice(0, 4), 0, 3)
    cache.aim([3, 1], torch.tensor([[3], [2]]), 4)
    new = torch.tensor([7.0, 9.0])[:, None, None, None].expand(-1, 3, -1, 2)
    keys, values = cache.update(new, -new, 0)
    assert keys[:, 0, :, 0].tolist() == [[300, 301, 302, 7], [100, 101, 9, 0]]
    assert torch.equal(values, -keys)
    assert written(cache)[0][[0, 2], 0, :4, 0].tolist() == [[0, 1, 2, 0], [200, 201, 202, 0]]

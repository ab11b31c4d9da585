from typing import NamedTuple

import torch

from metarl_lib.types import Rollout, index_tasks, select


class Pair(NamedTuple):
    a: torch.Tensor
    b: torch.Tensor


class Empty(NamedTuple):
    pass


def test_select_masks_the_leading_axes_of_every_leaf():
    mask = torch.tensor([[True, False], [False, True]])
    ones, zeros = Pair(torch.ones(2, 2, 3), torch.ones(2, 2)), Pair(torch.zeros(2, 2, 3), torch.zeros(2, 2))
    chosen = select(mask, ones, zeros)
    assert isinstance(chosen, Pair)
    assert torch.equal(chosen.a, mask[..., None].expand(2, 2, 3).float())
    assert torch.equal(chosen.b, mask.float())


def test_select_and_index_tasks_pass_over_an_empty_tuple():
    assert select(torch.tensor([True]), Empty(), Empty()) == Empty()
    assert index_tasks(Empty(), slice(0, 1)) == Empty()


def test_index_tasks_by_slice_and_by_tensor():
    pair = Pair(torch.arange(4), torch.arange(8).reshape(4, 2))
    by_slice, by_tensor = index_tasks(pair, slice(1, 3)), index_tasks(pair, torch.tensor([3, 0]))
    assert by_slice.a.tolist() == [1, 2] and by_slice.b.tolist() == [[2, 3], [4, 5]]
    assert by_tensor.a.tolist() == [3, 0] and by_tensor.b.tolist() == [[6, 7], [0, 1]]


def test_returns_leave_padding_out():
    x = torch.zeros(2, 3)
    alive = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    rollout = Rollout(x, x, x, torch.tensor([[1.0, 2.0, 100.0], [4.0, 8.0, 16.0]]), x, x, x, alive)
    assert rollout.returns.tolist() == [3, 28]

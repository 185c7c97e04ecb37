from __future__ import annotations

import pickle

import numpy as np
import pytest

from trainer.data.order import Order, generator
from trainer.errors import UserError


def numbers(order: Order, start: int, stop: int) -> list[int]:
    return [number for _, number in order.at(start, stop)]


@pytest.mark.parametrize("run", [1, 4, 100])
def test_every_epoch_holds_every_sample_once_in_another_order(run: int) -> None:
    order = Order(37, seed=5, run=run)
    epochs = [numbers(order, start, start + 37) for start in (0, 37, 74)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    if run < 37:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != numbers(Order(37, seed=6, run=run), 0, 37)


def test_any_span_is_a_cut_of_the_whole() -> None:
    order = Order(10, seed=1)
    whole = order.at(0, 40)
    assert [epoch for epoch, _ in whole] == [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10
    for start, stop in ((0, 3), (8, 23), (39, 40), (7, 7), (12, 9 + 12)):
        assert Order(10, seed=1).at(start, stop) == whole[start:stop]
        assert pickle.loads(pickle.dumps(order)).at(start, stop) == whole[start:stop]


def test_runs_stay_together() -> None:
    found = numbers(Order(20, seed=1, run=5), 0, 20)
    assert all(found[at] + 1 == found[at + 1] for at in range(19) if at % 5 != 4)
    assert found != list(range(20))


def test_without_shuffling_samples_come_as_they_lie() -> None:
    assert numbers(Order(6, shuffle=False), 0, 12) == [*range(6), *range(6)]


def test_the_order_is_the_same_wherever_and_whenever_it_is_drawn() -> None:
    assert numbers(Order(8, seed=2023), 0, 8) == [7, 5, 0, 2, 1, 6, 3, 4]
    assert generator(1, "a").random() == generator(1, "a").random() != generator(1, "b").random()


def test_positions_are_mixed_evenly() -> None:
    places = np.array([numbers(Order(50, seed=seed), 0, 50).index(0) for seed in range(400)])
    assert abs(places.mean() - 24.5) < 3
    assert places.min() < 3
    assert places.max() > 46


def test_a_state_of_other_data_or_another_order_is_refused() -> None:
    order = Order(10, seed=1)
    state = order.state(23, "data")
    assert (state.epoch, state.samples) == (2, 3)
    assert order.position(type(state).from_json(state.to_json()), "data") == 23
    with pytest.raises(UserError, match="data is data, now others"):
        order.position(state, "others")
    with pytest.raises(UserError, match="seed is 1, now 2"):
        Order(10, seed=2).position(state, "data")
    with pytest.raises(UserError, match="run is 1, now 4"):
        Order(10, seed=1, run=4).position(state, "data")

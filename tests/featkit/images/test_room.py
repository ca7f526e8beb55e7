"""Images decoded side by side share a budget of memory: who needs much waits, and nobody waits
for ever."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from featkit.errors import InputError
from featkit.images import decode
from featkit.images.room import DEEP, OTHER, PLAIN, PROGRESSIVE, MemoryBudget, wait_for_room


class Watched(MemoryBudget):
    """A budget that notes what was asked for."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(num_bytes)
        self.asked: list[int] = []

    def take(self, num_bytes: int) -> int:
        self.asked.append(num_bytes)
        return super().take(num_bytes)


def encoded(mode: str, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image = (
        Image.fromarray(np.zeros((800, 1000), np.uint16))
        if mode == "I;16"
        else Image.new(mode, (1000, 800))
    )
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "num_bytes"),
    [
        (encoded("RGB", "PNG"), 800_000 * PLAIN),
        (encoded("L", "BMP"), 800_000 * PLAIN),
        (encoded("RGBA", "PNG"), 800_000 * OTHER),
        (encoded("RGB", "WEBP"), 800_000 * OTHER),
        (encoded("I;16", "PNG"), 800_000 * DEEP),
        (encoded("RGB", "JPEG"), 200_000 * PLAIN),  # decoded at a half for a shorter side of 256
        (encoded("RGB", "JPEG", progressive=True), 200_000 * PLAIN + 800_000 * PROGRESSIVE),
    ],
)
def test_a_image_asks_for_what_its_decoding_takes(data: bytes, num_bytes: int) -> None:
    budget = Watched(10**9)
    with budget.for_one_image():
        decode(data, shorter_side=256)
        assert budget.asked == [num_bytes]
    assert budget._free == 10**9
    decode(data, shorter_side=256)
    assert budget.asked == [num_bytes]  # outside of a budget nobody asks


def test_what_a_refused_image_took_is_given_back() -> None:
    budget = MemoryBudget(10**8)
    data = encoded("RGB", "PNG")
    with pytest.raises(InputError), budget.for_one_image():
        decode(data[: len(data) // 2])
    assert budget._free == 10**8


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0, 5.0])
def test_images_side_by_side_never_hold_more_than_the_budget(share: float) -> None:
    budget, num_bytes = MemoryBudget(30_000), int(share * 30_000)
    held, most, lock = [0], [0], threading.Lock()

    def work() -> None:
        for _ in range(10):
            with budget.for_one_image():
                wait_for_room(1, 1, bytes_per_pixel=num_bytes)
                with lock:
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                time.sleep(0.001)
                with lock:
                    held[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert most[0] == max(1, int(1 / share))


def test_a_large_image_is_not_overtaken_for_ever() -> None:
    budget = MemoryBudget(10)
    small = budget.take(6)
    order: list[str] = []

    def ask(name: str, num_bytes: int) -> None:
        taken = budget.take(num_bytes)
        order.append(name)
        budget.give(taken)

    threads = [
        threading.Thread(target=ask, args=("large", 10)),
        threading.Thread(target=ask, args=("later", 2)),
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    assert order == []  # the later one fits, but comes later
    budget.give(small)
    for thread in threads:
        thread.join(20)
    assert order == ["large", "later"]


def test_asking_twice_holds_the_larger_once() -> None:
    budget = MemoryBudget(10)
    with budget.for_one_image():
        wait_for_room(1, 1, bytes_per_pixel=4)
        wait_for_room(1, 1, bytes_per_pixel=10)  # would wait for itself if it held on to the first
        assert budget._free == 0
        wait_for_room(1, 1, bytes_per_pixel=3)
        assert budget._free == 0
    assert budget._free == 10

"""Go through all items of an index, page by page, while others may add and remove some."""

from __future__ import annotations

from itertools import pairwise

from featkit.errors import EnvironmentProblem
from featkit.serve.client import calls
from featkit.serve.client.calls import Call
from featkit.serve.schemas import Item, ItemsAnswer

PAGE_SIZE = 500


class Pages:
    """The position in a list of items, which come by ascending id.

    A page begins with the last item of the page before. If another item is there, some before it
    were removed, and the pages before are asked for again. So no item that stays is left out, and
    none comes twice.
    """

    def __init__(self, address: str, where: str | None) -> None:
        self._address, self._where = address, where
        self._offset = 0
        self._last_id = -1
        self._ids: list[int] = []  # of the page before; empty after going back
        self.has_ended = False

    def call(self) -> Call[ItemsAnswer]:
        """Return the call of the next page."""
        return calls.items(self._offset, PAGE_SIZE, self._where)

    def take(self, page: ItemsAnswer) -> list[Item]:
        """Return the items of an answered page that are new. EnvironmentProblem without order."""
        ids = [item.id for item in page.items]
        is_full = len(ids) == PAGE_SIZE
        if any(later <= earlier for earlier, later in pairwise(ids)) or (
            is_full and ids == self._ids
        ):
            raise EnvironmentProblem(
                f"{self._address} lists items in another order than `featkit serve` does; check the"
                " address."
            )
        if self._offset > 0 and (not ids or ids[0] > self._last_id):
            self._offset = max(0, self._offset - PAGE_SIZE)
            self._ids = []
            return []
        new = [item for item in page.items if item.id > self._last_id]
        if new:
            self._last_id = new[-1].id
        self._ids = ids
        self._offset += max(len(ids) - 1, 0)
        self.has_ended = not is_full
        return new

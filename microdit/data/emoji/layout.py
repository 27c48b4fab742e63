"""Place the objects of a scene: each has its own cell of the frame and a position within it.

Cells do not overlap. So objects do not overlap, and a relation between groups holds at any position within the cells.
"""

from __future__ import annotations

from microdit.data.emoji.render import aspect
from microdit.data.emoji.scene import Backdrop, Box, Group, UniformDraws

# Free space at the frame's edge, as a share of its side.
EDGE = 0.02
# (objects in the image, size word) -> range of an object's longer side, large enough to recognize it at 64 px.
LONGEST = {
    (1, None): (0.58, 0.8),
    (1, "small"): (0.38, 0.48),
    (1, "big"): (0.86, 0.95),
    (2, None): (0.42, 0.47),
    (2, "small"): (0.3, 0.36),
    (2, "big"): (0.5, 0.56),
    (3, None): (0.4, 0.46),
}


def place_all(
    draws: UniformDraws,
    groups: tuple[Group, ...],
    codes: list[str],
    relation: str | None,
    backdrop: Backdrop,
    vary: bool,
) -> list[Box]:
    """Choose the boxes of all drawings, inside the frame and without overlap.

    Args:
        draws: random draws.
        groups: one or two groups.
        codes: drawing of each object, those of the first group first.
        relation: of the first group to the second, one of `RELATIONS`; None for one group.
        backdrop: the background; its horizon limits the positions.
        vary: draw sizes and positions; otherwise they are the middles of their ranges.

    Returns:
        One box per object, in the order of `codes`.
    """
    cells = _cells(draws, groups, relation)
    if backdrop.horizon is not None and len(cells) == 2:
        cells = [(x0, 0.0, x1, 1.0) for x0, _, x1, _ in _side_by_side(cells)]
    members = [group for group in groups for _ in range(group.count)]
    return [
        _place(draws if vary else _Middle(), cell, code, group, len(cells), backdrop)
        for cell, code, group in zip(cells, codes, members, strict=True)
    ]


def _cells(draws: UniformDraws, groups: tuple[Group, ...], relation: str | None) -> list[Box]:
    """Return one cell per object, first group first."""
    count = sum(group.count for group in groups)
    if count == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    if relation is None:
        return _free_cells(draws, count)
    split = {None: 0.5, "small": 0.4, "big": 0.6}[groups[0].size]
    before = relation in ("left of", "above")
    near, far = (0.0, split), (split, 1.0)
    if not before:
        near, far = (1 - split, 1.0), (0.0, 1 - split)
    cells = []
    for group, (start, end) in zip(groups, (near, far), strict=True):
        for part in range(group.count):
            low, high = (0.12, 0.88) if group.count == 1 else (part / 2, (part + 1) / 2)
            cells.append((start, low, end, high))
    return cells if relation in ("left of", "right of") else [(y0, x0, y1, x1) for x0, y0, x1, y1 in cells]


def _free_cells(draws: UniformDraws, count: int) -> list[Box]:
    halves = ((0.0, 0.5), (0.5, 1.0))
    if count == 2:
        layout = draws.weighted((0.6, 0.2, 0.2))
        row: list[Box] = [(0.0, 0.12, 0.5, 0.88), (0.5, 0.12, 1.0, 0.88)]
        if layout == 0:
            return row
        if layout == 1:
            return [(y0, x0, y1, x1) for x0, y0, x1, y1 in row]
        return [(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)]
    top_one = draws.chance(0.5)
    alone, pair = halves if top_one else halves[::-1]
    return [(0.25, alone[0], 0.75, alone[1]), *[(left, pair[0], right, pair[1]) for left, right in halves]]


def _side_by_side(cells: list[Box]) -> list[Box]:
    """Rearrange stacked cells side by side, because objects are on the ground."""
    if cells[0][2] <= cells[1][0] or cells[1][2] <= cells[0][0]:
        return cells
    return [(y0, x0, y1, x1) for x0, y0, x1, y1 in cells]


class _Middle:
    """Stand in for random draws if nothing varies."""

    @staticmethod
    def uniform(low: float, high: float) -> float:
        return (low + high) / 2


def _place(draws: UniformDraws | _Middle, cell: Box, code: str, group: Group, count: int, backdrop: Backdrop) -> Box:
    margin = EDGE if count == 1 else EDGE / 2
    x0, y0, x1, y1 = cell[0] + margin, cell[1] + margin, cell[2] - margin, cell[3] - margin
    across, along = aspect(code)
    low, high = LONGEST[count, group.size]
    longest = draws.uniform(low, high)
    if count > 1 and group.size is None:
        # Long and low objects, such as boats, may be longer in a wide cell than tall ones.
        longest *= min(1.4, max(1.0, min((x1 - x0) / across, (y1 - y0) / along) / high))
    width, height = longest * across, longest * along
    left = draws.uniform(x0, x1 - width)
    highest, lowest = y0, y1 - height
    if backdrop.horizon is not None and group.kind == "airplane":
        lowest = min(lowest, max(highest, backdrop.horizon - height / 2))
    elif backdrop.horizon is not None:
        # Feet, wheels and keels are on the ground, between the horizon and the lower edge.
        highest = min(lowest, max(highest, backdrop.horizon + 0.06 - height))
    top = draws.uniform(highest, lowest)
    return left, top, left + width, top + height

"""What size a picture may have for a model, and what size a smaller copy gets; numbers only."""

# a side this many times the training pictures' shows the network nothing it knows, and takes
# minutes: time grows with the fourth power
MOST_TIMES_LARGER = 16


def with_shorter_side(size: int, *, height: int, width: int) -> tuple[int, int]:
    """Return height and width in the same proportion, the shorter of them `size`."""
    shorter = min(height, width)
    return round(height * size / shorter), round(width * size / shorter)


def is_far_larger(trained: int, *, height: int, width: int, times: int = MOST_TIMES_LARGER) -> bool:
    """Whether a side is more than `times` that of the training pictures."""
    return max(height, width) > times * trained

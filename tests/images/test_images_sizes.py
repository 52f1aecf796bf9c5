import pytest

from emu_edit.images import MOST_TIMES_LARGER, is_far_larger, with_shorter_side
from emu_edit.web.guard import Limits


@pytest.mark.parametrize(
    ("height", "width", "size", "resized"),
    [
        (16, 20, 32, (32, 40)),
        (20, 16, 32, (40, 32)),
        (40, 300, 16, (16, 120)),
        (64, 64, 64, (64, 64)),
        (3000, 4001, 64, (64, 85)),
    ],
)
def test_the_shorter_side_becomes_the_size_and_the_other_keeps_the_proportion(
    height: int, width: int, size: int, resized: tuple[int, int]
) -> None:
    assert with_shorter_side(size, height=height, width=width) == resized


def test_a_picture_is_far_larger_when_its_longer_side_is() -> None:
    assert not is_far_larger(16, height=10, width=256)
    assert is_far_larger(16, height=10, width=257)
    assert is_far_larger(16, height=257, width=10)
    assert is_far_larger(16, height=10, width=33, times=2)


def test_the_page_and_the_command_line_have_one_limit() -> None:
    assert Limits().times_larger == MOST_TIMES_LARGER

"""Pictures are compressed while others are drawn, and none is lost."""

import threading

import numpy as np
import pytest
import torch

from gfi_lightning.recording.encoding import encoded, encoding

SIZES = [(900, 700, 3), (4, 4, 3), (500, 300, 3)] * 4  # what is handed over later may well be done earlier


def pictures_of(sizes):
    generator = np.random.default_rng(0)
    return {f"gfi/{number}": generator.integers(0, 256, size, np.uint8) for number, size in enumerate(sizes)}


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_are_as_if_compressed_one_by_one(threads):
    drawn, found = pictures_of(SIZES), {}
    with encoding(found) as encode:
        for tag, pixels in drawn.items():
            encode(tag, pixels, f"caption of {tag}", of_all_runs=tag.endswith("1"))
    expected = {tag: encoded(one, f"caption of {tag}", tag.endswith("1")) for tag, one in drawn.items()}
    assert list(found.items()) == list(expected.items())
    for tag, picture in found.items():
        assert np.array_equal(np.asarray(picture.image()), drawn[tag])


def test_what_was_drawn_before_a_failure_is_kept(threads):
    drawn, found = pictures_of(SIZES[:3]), {}
    with pytest.raises(ZeroDivisionError), encoding(found) as encode:  # noqa: PT012 - all of it is the case
        for tag, pixels in drawn.items():
            encode(tag, pixels)
        raise ZeroDivisionError
    assert list(found) == list(drawn)


def test_one_that_cannot_be_compressed_is_said_and_takes_no_other_away(threads):
    drawn, found = pictures_of(SIZES[:4]), {}
    with pytest.raises(TypeError), encoding(found) as encode:  # noqa: PT012 - all of it is the case
        for tag, pixels in drawn.items():
            encode(tag, pixels)
            encode(f"{tag}/wrong", np.zeros((3, 3, 3, 3)))
    assert list(found) == list(drawn)


def test_an_interruption_is_not_taken_for_a_failure(threads):
    found = {}
    with pytest.raises(KeyboardInterrupt), encoding(found) as encode:  # noqa: PT012 - all of it is the case
        encode("gfi/wrong", np.zeros((3, 3, 3, 3)))
        raise KeyboardInterrupt
    assert not found


def test_where_no_thread_can_be_started_pictures_are_compressed_all_the_same(threads):
    drawn, found = pictures_of(SIZES), {}
    before = threading.stack_size(2**47)  # more than there are addresses for
    try:
        with pytest.raises(RuntimeError):
            threading.Thread(target=int).start()
        with pytest.raises(TypeError), encoding(found) as encode:  # noqa: PT012 - all of it is the case
            for tag, pixels in drawn.items():
                encode(f"{tag}/wrong", np.zeros((3, 3, 3, 3)))
                encode(tag, pixels)
    finally:
        threading.stack_size(before)
    assert list(found.items()) == [(tag, encoded(one)) for tag, one in drawn.items()]


def test_no_thread_is_left(threads):
    before, found = threading.active_count(), {}
    with encoding(found) as encode:
        for tag, pixels in pictures_of(SIZES).items():
            encode(tag, pixels)
    assert threading.active_count() == before

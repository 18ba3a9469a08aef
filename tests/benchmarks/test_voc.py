import pytest
import torch
from bench.voc import of_one_class, read_ids, read_photograph, read_photographs, stack_images
from torchvision.transforms import v2

from gfi_lightning import UsageError

resize = v2.Compose([v2.Resize((10, 10)), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def test_boxes_count_from_0_and_exclude_their_ends(voc):
    photograph = read_photograph(voc, "cat")
    assert photograph.size == (40, 20)
    assert [thing.box for thing in photograph.objects] == [(0, 0, 40, 20), (10, 5, 20, 10)]


def test_boxes_are_resized_along(voc):
    photograph = read_photograph(voc, "cat")
    assert photograph.boxes((40, 20)).tolist() == [[0, 0, 20, 40], [5, 10, 10, 20]]
    assert photograph.boxes((20, 40)).tolist() == [[0, 0, 40, 20], [10, 5, 20, 10]]


def test_boxes_of_one_class_alone(voc):
    photograph = read_photograph(voc, "both")
    assert photograph.boxes((20, 40), "cat").tolist() == [[8, 8, 10, 10]]
    assert photograph.boxes((20, 40), "cow").shape == (0, 4)


def test_only_photographs_with_exactly_one_class_are_kept(voc):
    photographs = read_photographs(voc, ["cat", "dog", "both", "nothing"])
    assert [photograph.id for photograph in of_one_class(photographs)] == ["cat", "dog"]


def test_the_boxes_of_an_objects_parts_are_not_its_own(voc):
    path = voc / "Annotations" / "dog.xml"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    path.write_text(path.read_text().replace("<bndbox>", f"{part}<bndbox>", 1))
    assert [thing.box for thing in read_photograph(voc, "dog").objects] == [(4, 4, 8, 8)]


def test_images_of_other_kinds_are_found(voc):
    assert read_photograph(voc, "dog").path.name == "dog.png"
    images = stack_images(read_photographs(voc, ["cat", "dog"]), resize)
    assert images.shape == (2, 3, 10, 10)
    assert torch.allclose(images, torch.tensor(120 / 255), atol=0.02)


def test_lists_of_ids(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_text("000001\n\n000002 -1\n000003  1\n000004  0\n000001\n")
    assert read_ids(path) == ["000001", "000003", "000004"]


def test_what_is_missing_is_named(voc, tmp_path):
    with pytest.raises(UsageError, match=r"cow\.xml is missing"):
        read_photograph(voc, "cow")
    (voc / "JPEGImages" / "cat.jpg").unlink()
    with pytest.raises(UsageError, match="no image for the id 'cat'"):
        read_photograph(voc, "cat")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UsageError, match="holds no ids"):
        read_ids(tmp_path / "empty.txt")


def test_a_preprocessing_that_keeps_sizes_apart_is_told(voc):
    def uneven(image):
        return torch.zeros(3, 4, 4 if image.getpixel((0, 0))[0] > 200 else 5)

    from tests.benchmarks.conftest import write_photograph

    write_photograph(voc, "bright", (40, 20), [("cat", (1, 1, 2, 2))], colour=(255, 255, 255))
    with pytest.raises(UsageError, match="one size, uncropped"):
        stack_images(read_photographs(voc, ["cat", "bright"]), uneven)

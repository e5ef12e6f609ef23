import numpy as np

from pipeline.training.augmentation import N_OTHERS, OtherOrientations


class Tiles:
    sizes = np.array([[2, 3], [2, 2]])

    def pixels(self, position):
        height, width = self.sizes[position]
        return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_the_image_and_its_other_orientations_are_all_eight_once():
    others = OtherOrientations(Tiles())
    square = [others.pixels(2 * number + 1) for number in range(N_OTHERS)]
    assert len({image.tobytes() for image in [Tiles().pixels(1), *square]}) == 8
    # every orientation has the same pixels
    assert {tuple(np.sort(image[..., 0].ravel())) for image in square} == {(0, 3, 6, 9)}


def test_a_quarter_turn_swaps_height_and_width():
    others = OtherOrientations(Tiles())
    assert others.sizes.shape == (2 * N_OTHERS, 2)
    for position, size in enumerate(others.sizes.tolist()):
        assert others.pixels(position).shape == (*size, 3)
    assert others.sizes[::2].tolist().count([3, 2]) == 4

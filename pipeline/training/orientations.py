"""Rotated and mirrored versions of training images: the label does not depend on the orientation."""

import numpy as np

from pipeline.data.images import Images, Pixels, Sizes

N_OTHERS = 7  # orientations of a square besides the original one


class OtherOrientations:
    """All images in the seven other orientations: first all rotated by 90 degrees, then all by 180, and so on."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._n_images = len(images.sizes)
        turned = [images.sizes[:, ::-1] if _orientation(number)[0] % 2 else images.sizes for number in range(N_OTHERS)]
        self.sizes: Sizes = np.concatenate(turned)

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, (height, width, 3)."""
        number, image = divmod(position, self._n_images)
        quarter_turns, is_mirrored = _orientation(number)
        pixels = self._images.pixels(image)
        return np.rot90(pixels[:, ::-1] if is_mirrored else pixels, quarter_turns)


def _orientation(number: int) -> tuple[int, bool]:
    """Return the number of quarter turns of an orientation 0..6, and whether the image is mirrored first."""
    return (number + 1) % 4, number >= 3

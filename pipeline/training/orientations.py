"""Images turned and mirrored: a crack is a crack from every side."""

import numpy as np

from pipeline.data.images import Images, Pixels, Sizes

N_OTHERS = 7  # orientations of a square besides the one that it is in


class OtherOrientations:
    """All images in the orientations that they are not in: all turned by 90 degrees, then all by 180, and so on."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self._n_images = len(images.sizes)
        turned = [images.sizes[:, ::-1] if _of(number)[0] % 2 else images.sizes for number in range(N_OTHERS)]
        self.sizes: Sizes = np.concatenate(turned)

    def pixels(self, position: int) -> Pixels:
        """Return the image at `position` decoded: RGB, uint8, (height, width, 3)."""
        number, image = divmod(position, self._n_images)
        quarter_turns, is_mirrored = _of(number)
        pixels = self._images.pixels(image)
        return np.rot90(pixels[:, ::-1] if is_mirrored else pixels, quarter_turns)


def _of(number: int) -> tuple[int, bool]:
    """Return the quarter turns of an orientation 0..6, and whether it is mirrored before."""
    return (number + 1) % 4, number >= 3

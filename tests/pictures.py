"""Images in memory, as the pipeline takes them."""

import numpy as np


class Pictures:
    def __init__(self, pictures):
        self.pictures = pictures
        self.sizes = np.array([picture.shape[:2] for picture in pictures])

    def pixels(self, position):
        return self.pictures[position]

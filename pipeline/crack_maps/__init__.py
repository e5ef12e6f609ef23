"""From images and whole photos to where the cracks are."""

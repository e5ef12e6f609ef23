"""From a photo to the lines along which its cracks run, with their widths."""

"""From photos of concrete to a registered crack classifier. The modules at the top are the DVC stages."""

import os

__version__ = "0.2.0"

# The only side effect on import in this package. The libraries read these variables when they are imported.
# No telemetry:
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# TensorFlow's start-up messages about CPU features need no action:
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

"""From photos of concrete to a registered crack classifier: one module per DVC stage, and the few that they share."""

import os

__version__ = "0.2.0"

# The only effect on import in this package, here because each library reads these when it is itself imported.
# No program reports home:
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# TensorFlow's start-up lines name CPU features, nothing that a reader can act on:
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

"""Running a model: its served form on OpenVINO, the starter model, the out-of-distribution detector."""

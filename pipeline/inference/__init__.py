"""Running a model: the served model on OpenVINO, the starter model, the out-of-distribution detector."""

"""Networks, and what is exported with them: graph, calibration, decision rule."""

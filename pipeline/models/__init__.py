"""The networks, and what is exported of them: graph, calibration, decision rule."""

"""The prediction log, drift monitoring, alerts, and the heartbeat of the schedules."""

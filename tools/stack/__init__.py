"""Prometheus and Alertmanager with the configuration in deploy/, on this machine: `make stack`."""

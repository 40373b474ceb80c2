"""The daemon of a node: a Snapshot on a clock, served as metrics, JSON and a page."""

"""The commands of `dlmon`, one module each: `configure(parser)` and `main(args) -> exit status`."""

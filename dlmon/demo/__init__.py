"""A real training on real photographs, to see dlmon at work: what `dlmon demo` starts."""

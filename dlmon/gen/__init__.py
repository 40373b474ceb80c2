"""Documents made from code: pure functions to text, and the files that hold it."""

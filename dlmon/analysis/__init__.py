"""What a Snapshot means: verdicts, and the sentences in which an operator reads them."""

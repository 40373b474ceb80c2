"""The wire between job and agent: one file in shared memory per live iterator."""

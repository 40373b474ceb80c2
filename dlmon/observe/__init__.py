"""The world seen from outside the job: segments and processes become a Snapshot."""

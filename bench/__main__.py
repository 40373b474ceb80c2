"""`python -m bench`: every benchmark, one after the other."""

from bench import shim_cost

if __name__ == "__main__":
    shim_cost.main()

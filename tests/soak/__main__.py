"""`python -m tests.soak`: healthy jobs of many kinds and hung ones side by side, and one agent.

Everything is accelerated: the agent's threshold has a floor of seconds instead of a minute, and
what jobs do is scaled by it. The agent's wall clock jumps by hours meanwhile, if libfaketime is
there.
Exit status 1 if anything was found about a healthy job, a hung one was not reported, or the clock
did not jump.
"""

from __future__ import annotations

import argparse
import sys

from tests.soak.soak import Soak


def main() -> int:
    """Run it and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="how long (default: 30)")
    parser.add_argument("--hangs", type=int, default=24, help="hung jobs, in all (default: 24)")
    parser.add_argument("--floor", type=float, default=5, help="the agent's floor in seconds")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    args = parser.parse_args()
    soak = Soak(args.floor, args.seed, say=lambda line: print(line, flush=True))
    try:
        soak.run(60 * args.minutes, args.hangs)
    except KeyboardInterrupt:
        print("interrupted: what was found so far")
    print(soak.summary())
    return 0 if soak.passed else 1


if __name__ == "__main__":
    sys.exit(main())

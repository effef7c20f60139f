"""Speed and memory: ratios taken in one run, on the machine that is named in the result."""

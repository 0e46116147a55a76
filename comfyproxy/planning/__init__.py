"""What strategies would do with a fleet and its jobs: the real scheduler on simulated GPUs, in no time.

`trace` is the jobs, `fleet` the backends, `workloads` makes up traces. `engine` runs one, `bound` says what no schedule
can beat, `figures` what a run was worth, `comparing` puts strategies side by side; `report` and `drawing` show it.
"""

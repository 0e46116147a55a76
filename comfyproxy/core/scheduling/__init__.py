"""Which waiting job goes to which backend, and when: pure code, time is an argument.

`scheduler` is the way in. `queue` orders the waiting jobs, fair between clients; `fleet` knows the backends' load;
`strategies` choose the backend; `affinity` is the strategy that knows about models in memory, by `prospects` of when a
job would end where, and by what `durations` has learned.
"""

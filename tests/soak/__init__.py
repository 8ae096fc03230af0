"""The fault campaign: runs that are killed, disks that are full, files that are hostile.

    python -m tests.soak [--only NAME ...] [--minutes 60] [--seed 0]

Not part of `make test`: pytest collects no file here. `make soak` runs all of it.
`docs/reliability.md` has its figures.

    campaign    a row of the table, and what shares the minutes among campaigns
    kills       runs that are killed or asked to stop, and continued
    comparing   how such a run differs from one left alone
    points      the places of a run in which that happens
    length      long runs: memory, files, threads
    __main__    the table of campaigns, the command
    hostile     hand-made hostile files; `attacks/` makes them
    mutations   mutated files; `fuzz` is the process, `readers/` what reads them, `structures` and
                `messages` how they are changed
"""

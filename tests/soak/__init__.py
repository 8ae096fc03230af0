"""The fault campaign: runs that are killed, disks that are full, files that are hostile.

    python -m tests.soak [--only NAME ...] [--minutes 60] [--seed 0]

Not part of `make test`: pytest collects no file here. `make soak` runs all of it.
`docs/reliability.md` has its figures.

    campaign    a row of the table, and what shares the minutes among campaigns
    kills       runs that are killed or asked to stop, and continued
    comparing   how such a run differs from one left alone
    points      the places of a run in which that happens
    length      long runs: memory, files, threads
    peers       workers, the other processes of a job, the network between them
    places      where a run is watched: Visdom, TensorBoard, W&B; rows of `peers`
    endings     how a run ended, and which processes it has
    numbers     gradients, weights, learning rates and batches that are not finite, or of no use
    __main__    the table of campaigns, the command
    hostile     hand-made hostile files; `attacks/` makes them
    mutations   mutated files; `fuzz` is the process, `readers/` what reads them, `structures` and
                `messages` how they are changed
"""

"""Hand-made hostile files, each with the command that a user would give it to.

An attack's files are made in a folder of its own: `in/` is what the user fetched, `outside/` is
what nothing may change, and the command may write into `out/` alone. What is executed makes the
file CANARY in the folder.

    table      an attack, the table of kinds, the commands
    names      names, links and devices that lead out of an archive, a list or a folder
    pickles    pickles that ask for code, and nested ones
    numbers    numbers that are none, in lists and in JSON
    texts      YAML, JSON, long lines, encodings
    folders    data sets and networks of Hugging Face, MegaFace's devkit
    training   data, checkpoints, teachers, sweeps: what a run is started with
"""

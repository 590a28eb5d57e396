"""Running models on emulated ARM boards: an aarch64 Python under qemu, with instructions counted by class.

``build`` makes the tree of files once, ``cache`` keeps it, ``board`` says what the boards are, ``counter`` compiles
the plugin that counts, ``run`` runs models, and ``check`` compares what came out with this machine.
"""

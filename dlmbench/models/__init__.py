"""What is known of models before a weight is read: names and settings, sizes, and which belong together.

`presets` turns a name into a checkpoint and its settings, `shapes` holds the sizes that `bench` times with random
weights (the one module here that imports torch), `compatibility` says how a model attends and which helpers fit it.
"""

"""The contract: what the mount, the nameserver, the datanodes and the tools agree on.

Nothing here imports another folder of the project; everything else may import this one.
"""

from everfold import native

__version__ = "0.1.0"

native.prefer()  # before anything that has a compiled twin is imported

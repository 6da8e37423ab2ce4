"""The contract: what the mount, the nameserver, the datanodes and the tools agree on.

Nothing here imports another folder of the project; everything else may import this one.
"""

__version__ = "0.1.0"

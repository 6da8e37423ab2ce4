"""The temporal tree: names, inodes, bytes and versions of every space, at every moment.

`Tree` is the whole of it to the outside; who may ask for what is decided above it.
"""

from nameserver.tree.batch import Author
from nameserver.tree.ledger import BlockLedger
from nameserver.tree.spaces import make_space
from nameserver.tree.tree import Tree

__all__ = ["Author", "BlockLedger", "Tree", "make_space"]

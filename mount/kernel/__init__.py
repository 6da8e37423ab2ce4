"""The Linux FUSE protocol, spoken by ourselves on /dev/fuse.

No library stands between: `abi` is linux/fuse.h, `mounting` attaches a descriptor to a
directory, `session` reads requests and writes answers, `requests` turns each into a call of
`mount.filesystem.Filesystem`, `notify` tells the kernel what to forget. `KernelMount` is all
of it together.
"""

from mount.kernel.driver import KernelMount
from mount.kernel.mounting import MountOptions

__all__ = ["KernelMount", "MountOptions"]

"""What gets installed: the packages as they stand, and the four commands.

The packages are listed by hand: a search would pick up `tests`, and a new folder is a decision.
"""

from pathlib import Path

from setuptools import setup

setup(
    name="everfold",
    version="0.1.0",
    description="A folder that never forgets and never loses: versioned, replicated, mounted",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=[
        "everfold",
        "everfold.stores",
        "everfold.wire",
        "mount",
        "mount.kernel",
        "nameserver",
        "nameserver.files",
        "nameserver.live",
        "nameserver.openapi",
        "nameserver.routes",
        "nameserver.tree",
        "datanode",
        "tools",
    ],
    package_data={"nameserver": ["web/*"]},
    install_requires=[
        "bcrypt>=4.1",
        "blake3>=1.0",
        "flask>=3.0",
        "flask-httpauth>=4.8",
        "flask-socketio>=5.5",
        "itsdangerous>=2.1",
        "mfusepy>=3.0",
        "msgspec>=0.18",
        "peewee>=4.0",
        "psycopg[binary]>=3.2",
        "requests>=2.31",
        "simple-websocket>=1.0",
        "wsproto>=1.2",
        "xattr>=1.1",
    ],
    extras_require={
        "dev": [
            "hypothesis>=6.100",
            "jsonschema-rs>=0.30",
            "mypy>=1.10",
            "playwright>=1.45",
            "pyjwt>=2.8",
            "pytest>=8.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.5",
            "python-socketio[client]>=5.11",
            "pyyaml>=6.0",
            "ruff>=0.6",
            "schemathesis>=4.0",
            "setuptools>=65",
            "trustme>=1.1",
            "types-requests",
            "types-setuptools",
            "websocket-client>=1.7",
        ],
    },
    entry_points={
        "console_scripts": [
            "everfold=tools.__main__:main",
            "everfold-nameserver=nameserver.__main__:main",
            "everfold-datanode=datanode.__main__:main",
            "everfold-mount=mount.__main__:main",
            "mount.everfold=tools.fstab:main",
        ],
    },
)

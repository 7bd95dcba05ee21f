"""Overlay layers as the kernel lists them: each form in which engines mount them."""

from __future__ import annotations

import pytest

from harness.sandbox.observe.mountinfo import Layers, container_layers, resolved, root_layers

STORE = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
OTHERS = """\
23 22 0:21 / /proc rw,nosuid - proc proc rw
24 22 0:22 / /dev rw - tmpfs tmpfs rw,lowerdir=/not/this
"""


def root(options: str, kind: str = "overlay") -> str:
    """Build a mountinfo whose root file system has these options."""
    return f"76 51 0:40 / / rw,relatime - {kind} overlay {options}\n{OTHERS}"


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        pytest.param("rw,lowerdir=/l/A:/l/B,upperdir=/u/diff,workdir=/w", ("/u/diff", "/l/A", "/l/B"), id="docker"),
        pytest.param(
            "rw,lowerdir=1967/fs:1966/fs,upperdir=/s/1968/fs,workdir=/s/1968/work,uuid=on",
            ("/s/1968/fs", "1967/fs", "1966/fs"),
            id="containerd, relative",
        ),
        pytest.param(
            "rw,lowerdir+=/l/A,lowerdir+=/l/B:x,upperdir=/u,workdir=/w", ("/u", "/l/A", "/l/B:x"), id="one option each"
        ),
        pytest.param("rw,lowerdir=/a\\134:b:/c\\040d,upperdir=/u,workdir=/w", ("/u", "/a:b", "/c d"), id="escaped"),
        pytest.param("rw,lowerdir=/a\\054b,upperdir=/u\\134,workdir=/w", ("/u\\", "/a,b"), id="comma"),
        pytest.param("rw,lowerdir=/a:/b::/content,upperdir=/u,workdir=/w", ("/u", "/a", "/b"), id="content only"),
        pytest.param(
            f"rw,lowerdir={':'.join(f'l/{n}' for n in range(80))},upperdir=/o/x/diff",
            ("/o/x/diff", *(f"l/{n}" for n in range(80))),
            id="80 layers",
        ),
    ],
)
def test_the_layers_are_read(options: str, layers: tuple[str, ...]) -> None:
    """Every form of the options gives the writable layer and the layers below it, the top one first."""
    upper, *lowers = layers
    assert root_layers(root(options)) == Layers(upper, tuple(lowers))


@pytest.mark.parametrize(
    "mountinfo",
    [
        pytest.param("", id="empty"),
        pytest.param(OTHERS, id="no root"),
        pytest.param("garbage\n - overlay\n1 2 3 / /\n", id="garbage"),
        pytest.param(root("rw,lowerdir=/a,upperdir=/b", kind="btrfs"), id="another file system"),
        pytest.param(root("ro,lowerdir=/a:/b"), id="read-only"),
        pytest.param(root("rw,upperdir=/b"), id="no lower layer"),
        pytest.param(root("rw,lowerdir=/a,upperdir=/b") + "9 1 0:9 / / rw - tmpfs tmpfs rw\n", id="covered"),
    ],
)
def test_what_is_no_writable_overlay_has_no_layers(mountinfo: str) -> None:
    """A root file system that isn't a writable overlay, or that another mount covers, has no layers."""
    assert root_layers(mountinfo) is None


@pytest.mark.parametrize(
    ("upper", "base"),
    [
        pytest.param(f"{STORE}/1968/fs", STORE, id="containerd"),
        pytest.param("/var/lib/docker/overlay2/abc/diff", "/var/lib/docker/overlay2", id="docker"),
    ],
)
def test_relative_layers_are_found_above_the_writable_one(upper: str, base: str) -> None:
    """Relative layers are looked up in the folders above the writable layer, and all of them must exist."""
    there = {f"{base}/1/fs", f"{base}/2/fs", f"{upper}/1/fs"}
    relative = Layers(upper, ("1/fs", "2/fs"))
    assert resolved(relative, there.__contains__) == Layers(upper, (f"{base}/1/fs", f"{base}/2/fs"))
    assert resolved(relative, (there - {f"{base}/2/fs"}).__contains__) is None


def test_a_process_of_another_container_is_not_read() -> None:
    """A process whose control group doesn't name the container, or that doesn't exist, gives no layers."""
    assert container_layers(1, "0123456789abcdef" * 4) is None
    assert container_layers(4_194_305, "0123456789abcdef" * 4) is None

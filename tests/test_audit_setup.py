from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.audit.declared import Declared, from_compose, from_inspect, from_options, mount, variable
from harness.audit.retarget import SwitchLocation
from harness.audit.setup_check import Finding, Setup, Severity, check
from harness.audit.targets import bounded, not_applied
from harness.errors import UsageError
from harness.resources.data import ROOT, read_yaml
from harness.sandbox.protocol import Limits
from harness.tasks.task import AgentUser
from tests.builders import a_file, a_folder, law

WORKER = AgentUser(user="worker", uid=500, gid=500, home="/srv/w", workdir="/srv/w")
TIGHT: dict[str, Any] = {
    "source": "a test",
    "cap_drop": ("ALL",),
    "network": "none",
    "memory": 256 << 20,
    "processes": 256,
    "cpus": 0.5,
    "read_only": True,
    "security": ("no-new-privileges:true",),
}


def found(agent: AgentUser = WORKER, **declared: Any) -> list[Finding]:
    """Return the findings for an otherwise tight container with these declared options."""
    setup = Setup(declared=Declared(**{**TIGHT, **declared}), place=SwitchLocation(agent=agent))
    return list(check(setup))


def names(findings: list[Finding]) -> list[str]:
    """Return the findings' ids."""
    return [each.id for each in findings]


def test_nothing_is_found_in_a_tight_container() -> None:
    """A tightly declared container has no findings."""
    assert found() == []


WEAK: list[tuple[str, dict[str, Any]]] = [
    ("engine-socket", {"mounts": (mount("/var/run/docker.sock:/var/run/docker.sock"),)}),
    ("engine-socket", {"mounts": (mount("/var/run:/host:ro"),)}),
    ("host-mount", {"mounts": (mount("/etc:/host/etc:ro"),)}),
    ("writable-mount", {"mounts": (mount("./data:/data"),)}),
    ("read-only-mount", {"mounts": (mount("./data:/data:ro"),)}),
    ("privileged", {"privileged": True}),
    ("capabilities", {"cap_add": ("SYS_ADMIN",)}),
    ("added-capabilities", {"cap_add": ("LEASE",)}),
    ("default-capabilities", {"cap_drop": ("KILL",)}),
    ("host-network", {"network": "host"}),
    ("network-reach", {"network": "bridge"}),
    ("host-pid", {"pid": "host"}),
    ("host-pid", {"pid": "container:other"}),
    ("host-ipc", {"ipc": "host"}),
    ("host-uts", {"uts": "host"}),
    ("host-userns", {"userns": "host"}),
    ("devices", {"devices": ("/dev/kvm",)}),
    ("no-memory-limit", {"memory": None}),
    ("no-process-limit", {"processes": None}),
    ("no-cpu-limit", {"cpus": None}),
    ("secrets", {"environment": (variable("OPENAI_API_KEY=sk-1"),)}),
    ("gains-privileges", {"security": ()}),
    ("unconfined", {"security": ("no-new-privileges", "seccomp=unconfined")}),
    ("unconfined", {"security": ("no-new-privileges", "apparmor:unconfined")}),
    ("writable-root", {"read_only": False}),
]


@pytest.mark.parametrize(("name", "declared"), WEAK)
def test_each_weakness_is_found_by_itself(name: str, declared: dict[str, Any]) -> None:
    """One weak option gives exactly one finding, with its evidence and a fix."""
    (only,) = found(**declared)
    assert only.id == name
    assert only.evidence
    assert only.fix.endswith(".")


def test_a_named_volume_and_usual_capabilities_are_no_finding() -> None:
    """A named volume and capabilities that the engine grants by default give no finding."""
    assert found(mounts=(mount("data:/data"),), cap_add=("CHOWN", "KILL")) == []


def test_root_is_found_with_what_it_may_do() -> None:
    """An agent that runs as root is a finding, and so is any capability added to its container."""
    root = WORKER.model_copy(update={"uid": 0, "user": "root"})
    assert names(found(root, cap_add=("CHOWN",))) == ["agent-is-root", "added-capabilities"]


def test_a_kill_switch_in_the_agents_reach_is_found() -> None:
    """A script that the agent can write, a folder it can write, and a script in a volume are each a finding."""
    script, folder = a_file("/srv/w/stop", uid=500, gid=500), a_folder("/srv/w", uid=500, gid=500)
    above = a_folder("/srv", uid=0, gid=0)
    at = SwitchLocation(agent=WORKER, path="/srv/w/stop", script=script, folder=folder)
    setup = Setup(declared=Declared(**TIGHT), place=at, folders=(folder, above), volumes=("/srv",))
    assert names(list(check(setup))) == ["switch-writable", "switch-folder-writable", "switch-in-volume"]


def test_the_gravest_come_first() -> None:
    """Findings are sorted by severity, the highest first."""
    grave = [each.severity for each in found(read_only=False, pid="host", memory=None)]
    assert grave == [Severity.HIGH, Severity.MEDIUM, Severity.LOW]


def test_every_kind_of_finding_is_tried_here() -> None:
    """Every finding described in setup.yaml is covered by a test in this module."""
    known = set(read_yaml(ROOT / "harness" / "audit" / "setup.yaml"))
    elsewhere = {"agent-is-root", "switch-writable", "switch-folder-writable", "switch-in-volume"}
    assert known == {name for name, _ in WEAK} | elsewhere


# ---- declarations ----

OPTIONS = """
docker run -it --rm --user 1000:1000 --privileged --cap-add=SYS_ADMIN --cap-drop ALL --network host \\
  --pid host --ipc=host -v /var/run/docker.sock:/var/run/docker.sock:ro -m 512m --pids-limit 64 --cpus 0.5 \\
  -e OPENAI_API_KEY=sk-abc --env DEBUG=1 --device /dev/kvm --read-only --security-opt seccomp=unconfined image command
"""
COMPOSE = """
services:
  agent:
    image: image
    user: 1000:1000
    privileged: true
    cap_add: [CAP_SYS_ADMIN]
    cap_drop: [all]
    network_mode: host
    pid: host
    ipc: host
    volumes: ["/var/run/docker.sock:/var/run/docker.sock:ro"]
    deploy: {resources: {limits: {memory: 512m, pids: 64, cpus: "0.5"}}}
    environment: {OPENAI_API_KEY: sk-abc, DEBUG: 1}
    devices: [/dev/kvm]
    read_only: true
    security_opt: ["seccomp=unconfined"]
"""
INSPECT = json.dumps(
    [
        {
            "Config": {"User": "1000:1000", "Env": ["OPENAI_API_KEY=sk-abc", "DEBUG=1"]},
            "HostConfig": {
                "Privileged": True,
                "CapAdd": ["SYS_ADMIN"],
                "CapDrop": ["ALL"],
                "NetworkMode": "host",
                "PidMode": "host",
                "IpcMode": "host",
                "Memory": 512 << 20,
                "PidsLimit": 64,
                "NanoCpus": 500_000_000,
                "Devices": [{"PathOnHost": "/dev/kvm"}],
                "ReadonlyRootfs": True,
                "SecurityOpt": ["seccomp=unconfined"],
            },
            "Mounts": [
                {"Type": "bind", "Source": "/var/run/docker.sock", "Destination": "/var/run/docker.sock", "RW": False}
            ],
        }
    ]
)


def test_three_ways_to_declare_a_container_say_the_same() -> None:
    """Docker run options, a compose service and docker inspect output give the same declaration."""
    told = [from_options(OPTIONS), from_compose(COMPOSE, None), from_inspect(INSPECT)]
    one, two, three = (each.model_copy(update={"source": ""}) for each in told)
    assert one == two == three
    assert (one.user, one.memory, one.unread) == ("1000:1000", 512 << 20, ())
    assert [each.secret for each in one.environment] == [True, False]


def test_docker_runs_defaults_are_the_defaults() -> None:
    """Empty docker run options give the default declaration."""
    assert from_options("").model_copy(update={"source": "a test"}) == Declared(source="a test")


@pytest.mark.parametrize(
    ("read", "text", "sentence"),
    [
        (from_options, "--memory", "expected one argument"),
        (from_options, "-m lots", "'lots' isn't a size"),
        (from_options, "--pids-limit many", "'many' isn't a number of processes"),
        (from_options, "--cpus half", "'half' isn't a number of CPUs"),
        (from_options, "--user 'x", "No closing quotation"),
        (from_inspect, "{", "isn't the output of docker inspect"),
        (from_inspect, "{}", "no HostConfig"),
    ],
)
def test_a_declaration_that_cant_be_read_is_refused(read: Any, text: str, sentence: str) -> None:
    """An unreadable declaration is refused with a sentence that names the error."""
    with pytest.raises(UsageError, match=sentence):
        read(text)


@pytest.mark.parametrize(
    ("text", "service", "sentence"),
    [
        ("x", None, "no services"),
        ("services: {}", None, "no services"),
        ("a: [", None, "isn't valid YAML"),
        ("services: {a: {}, b: {}}", None, "of a, b"),
        ("services: {a: {}}", "b", "no service 'b': name one of a"),
    ],
)
def test_a_compose_file_that_cant_be_read_is_refused(text: str, service: str | None, sentence: str) -> None:
    """An unreadable compose file, or an unknown service in it, is refused with a sentence that names the error."""
    with pytest.raises(UsageError, match=sentence):
        from_compose(text, service)


def test_what_is_not_understood_is_said() -> None:
    """Options and compose keys that the audit doesn't read are listed as unread."""
    assert from_options("--gpus all --env-file secrets.env").unread == ("--gpus", "--env-file secrets.env")
    assert from_compose("services: {a: {env_file: x, image: y}}", None).unread == ("env_file",)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY=x", True),
        ("GITHUB_TOKEN=x", True),
        ("DB_PASSWORD=x", True),
        ("URL=postgres://me:pw@host/db", True),
        ("KEY=-----BEGIN RSA PRIVATE KEY-----", True),
        ("X=ghp_0123456789abcdefghij0123", True),
        ("API_KEY_FILE=/run/secrets/key", False),
        ("TOKEN=", False),
        ("PATH=/bin", False),
        ("URL=https://host/path", False),
    ],
)
def test_what_looks_like_a_secret(text: str, secret: bool) -> None:
    """A variable is marked as a secret by its name or value, unless it is empty or a file path."""
    assert variable(text).secret is secret


@law
@given(st.text(min_size=12))
def test_no_value_of_a_variable_is_kept(value: str) -> None:
    """A declared variable keeps its name and a secret flag, but never its value."""
    found = variable(f"NAME={value}").model_dump_json()
    assert found in ('{"name":"NAME","secret":true}', '{"name":"NAME","secret":false}')


def test_a_mount_with_a_variable_in_it() -> None:
    """A mount is split correctly although a compose variable's default in it contains a colon."""
    found = mount("${DATA:-/srv}:/data:ro")
    assert (found.source, found.target, found.bind, found.read_only) == ("${DATA:-/srv}", "/data", True, True)


def test_what_was_not_applied_is_said_and_limits_only_get_tighter() -> None:
    """Dangerous declared options are listed as not applied, and declared limits can only tighten the lab's."""
    declared = from_options(OPTIONS.replace("512m", "128m"))
    limits = bounded(declared, Limits())
    assert (limits.memory_mb, limits.processes, limits.cpus) == (128, 64, 0.5)
    said = "\n".join(not_applied(declared, limits))
    for word in (
        "privileged",
        "SYS_ADMIN",
        "pid host",
        "network host",
        "docker.sock",
        "/dev/kvm",
        "seccomp=unconfined",
    ):
        assert word in said
    assert "memory" not in said
    assert "sk-abc" not in said
    assert bounded(from_options("-m 1k --pids-limit 1"), Limits()).memory_mb == 64
    assert not_applied(Declared(**{**TIGHT, "read_only": False}), Limits()) == ()

"""A real Slurm with two nodes on this host, from Debian's slurm-wlm, while the tests run.

apt-get install slurm-wlm
make test ARGS="-m slurm tests/slurm"
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "sacct")

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
JobRequeue=1
KillWait=20
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
NodeName=one NodeHostname={host} NodeAddr=127.0.0.1 Port={one} CPUs=2 State=UNKNOWN
NodeName=two NodeHostname={host} NodeAddr=127.0.0.1 Port={two} CPUs=2 State=UNKNOWN
PartitionName=night Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Start slurmctld and two slurmd; yield the folder of their logs."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs a Slurm: {', '.join(missing)} not found (apt-get install slurm-wlm)")
    if os.geteuid() != 0:
        pytest.skip("slurmd starts jobs as their users, and so must be started by root")
    root = tmp_path_factory.mktemp("slurm")
    (root / "state").mkdir()
    ctld, one, two = _free_ports(3)
    conf = root / "slurm.conf"
    conf.write_text(
        CONF.format(
            host=socket.gethostname().partition(".")[0],
            user="root",
            root=root,
            ctld=ctld,
            one=one,
            two=two,
        )
    )
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(conf)
    commands = (["slurmctld", "-D"], ["slurmd", "-D", "-N", "one"], ["slurmd", "-D", "-N", "two"])
    output = (root / "daemons.log").open("w")
    daemons = [subprocess.Popen(command, stdout=output, stderr=output) for command in commands]
    try:
        _wait_until_idle(root)
        yield root
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)
        output.close()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


def _wait_until_idle(root: Path) -> None:
    states = ""
    for _ in range(120):
        process = subprocess.run(["sinfo", "-h", "-N", "-o", "%t"], capture_output=True, text=True)
        states = process.stdout
        if states.split() == ["idle", "idle"]:
            return
        time.sleep(0.5)
    logs = "\n".join(log.read_text()[-2000:] for log in root.glob("*.log"))
    pytest.fail(f"Slurm's nodes are {states.split()}, not idle:\n{logs}")

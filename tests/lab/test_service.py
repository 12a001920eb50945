"""The daemon as a systemd service of a second machine, with the unit of contrib/."""

import json
import re

import pytest

from rig import daemon, machine

LLAMA, VLLM = machine.UNITS


@pytest.fixture(scope="module")
def host(server):
    control = machine.ControlHost()
    control.prepare()
    yield control
    control.close()


@pytest.fixture
def service(server, host):
    """Both machines fresh; the GPU server off, the daemon configured on the host and started by systemd."""
    server.fresh(power=False)
    host.fresh()
    values = daemon.merged(daemon.configuration(server, machine.RUN), {
        "daemon": {"socket": "/run/wechsler/wechsler.sock", "group": "wechsler", "state_dir": "/var/lib/wechsler"},
        "gpu_server": {"ssh": {"key": "/etc/wechsler/id_ed25519"}, "wake": {"source": "10.77.0.3"}},
    })
    machine.write(host.root / "etc/wechsler/config.toml", daemon.toml(values))
    host.ssh("sync; systemctl start wechsler.service")
    return host


def it_drives_the_server_from_off_to_running_and_back(service, server):
    assert service.unit("wechsler.service")["ActiveState"] == "active"
    done = service.ssh("wechsler start --json", timeout=60)
    assert done.returncode == 0, done
    assert server.active() == {LLAMA} and server.health(LLAMA) == 200
    assert {packet["sender"] for packet in server.packets()} == {"10.77.0.3"}
    service.ssh("wechsler switch vllm", timeout=60)
    assert server.active() == {VLLM}
    assert json.loads(service.ssh("wechsler status --json").stdout)["state"] == "vllm"
    service.ssh("wechsler shutdown --power-off", timeout=60)
    server.wait_off(1)


def its_socket_is_for_the_group_and_nobody_else(service):
    assert "660 wechsler wechsler" in service.ssh("stat -c '%a %U %G' /run/wechsler/wechsler.sock").stdout
    service.ssh("useradd -M -G wechsler friend; useradd -M stranger")
    as_user = "setpriv --reuid={0} --regid={0} --init-groups wechsler status --json"
    assert service.ssh(as_user.format("friend")).returncode == 0
    done = service.ssh(as_user.format("stranger"), check=False)
    assert done.returncode == 3 and "ermission" in done.stderr + done.stdout, done


def it_is_hardened_and_runs_without_rights(service):
    text = service.ssh("systemd-analyze security wechsler.service --no-pager").stdout
    level = float(re.search(r"exposure level for wechsler.service: ([0-9.]+)", text).group(1))
    assert level <= 1.5, text
    pid = service.unit("wechsler.service")["MainPID"]
    status = service.ssh(f"cat /proc/{pid}/status").stdout
    assert re.search(r"CapEff:\s+0+\n", status) and not re.search(r"Uid:\s+0\s", status), status
    done = service.ssh(f"setpriv --reuid=wechsler --regid=wechsler --clear-groups cat /etc/wechsler/id_ed25519",
                       check=False)
    assert done.returncode != 0, "the key file itself is readable for the daemon's user"


def it_tells_systemd_how_it_is_and_logs_with_fields(service):
    shown = service.ssh("systemctl show wechsler.service -p StatusText,WatchdogUSec,NotifyAccess,Type").stdout
    assert "Type=notify" in shown and "WatchdogUSec=30s" in shown
    assert re.search(r"StatusText=\S+", shown), shown
    service.ssh("wechsler hold awake --for 1h --reason test")
    lines = [json.loads(line) for line in
             service.ssh("journalctl -u wechsler.service -o json --no-pager").stdout.splitlines()]
    own = [line for line in lines if line.get("_COMM") == "wechsler"]
    assert own, "nothing in the journal"
    assert any(line.get("_TRANSPORT") == "journal" for line in own), "the log has no fields"
    assert any("0" == str(line.get("F_UID", line.get("UID", ""))) or "uid" in str(line).lower() for line in own)


def a_daemon_that_hangs_is_restarted_by_the_watchdog(service):
    machine.write(service.root / "etc/systemd/system/wechsler.service.d/quick.conf", "[Service]\nWatchdogSec=2s\n")
    service.ssh("systemctl daemon-reload; systemctl restart wechsler.service")
    before = service.unit("wechsler.service")["MainPID"]
    service.ssh("sleep 3")
    assert service.unit("wechsler.service")["MainPID"] == before, "the watchdog bit a daemon that was well"
    service.ssh(f"kill -STOP {before}")
    machine.until("systemd has replaced it",
                  lambda: service.unit("wechsler.service")["MainPID"] not in (before, "0"), 20, 0.2)
    machine.until("it answers", lambda: service.ssh("wechsler status", check=False).returncode == 0, 10, 0.2)


def it_ends_at_once_when_told(service):
    service.ssh("systemctl stop wechsler.service", timeout=10)
    shown = service.unit("wechsler.service")
    assert shown["ActiveState"] == "inactive" and shown["Result"] == "success"
    assert service.ssh("wechsler status", check=False).returncode == 3

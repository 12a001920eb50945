"""Fixtures of the lab: one GPU server on one link, a new disk and a new boot for each test, a daemon of its own."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from rig import daemon, machine  # noqa: E402

REPORT = pytest.StashKey()
COUNT = pytest.StashKey()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash.setdefault(REPORT, {})[report.when] = report
    return report


@pytest.fixture(scope="session")
def server():
    """The GPU server of this run, its golden disk written once."""
    gpu = machine.GpuServer()
    gpu.prepare()
    yield gpu
    gpu.close()


@pytest.fixture
def off(server):
    """The GPU server, with a new disk, powered off."""
    server.fresh(power=False)
    yield server


@pytest.fixture
def gpu(server, request):
    """The GPU server, with a new disk, just booted; neither backend runs."""
    server.fresh()
    yield server
    if _failed(request) and server.powered:
        print("--- journal of the server ---\n" + server.journal(lines=120))


@pytest.fixture
def new_daemon(server, request, tmp_path):
    """Makes daemons: `new_daemon(**changes of the configuration)`; all are ended with the test."""
    made = []

    def make(start: bool = True, **change):
        wechsler = daemon.Wechsler(server, tmp_path / f"daemon{len(made)}", **change)
        made.append(wechsler)
        return wechsler.start() if start else wechsler

    yield make
    for number, wechsler in enumerate(made):
        wechsler.stop()
        if kept := os.environ.get("LAB_JOURNALS"):
            wechsler.keep_journal(pathlib.Path(kept), f"{request.node.name}-{number}")
        if _failed(request):
            print(f"--- log of daemon {number} ---\n" + wechsler.log_tail(150))


@pytest.fixture
def wechsler(new_daemon):
    """A daemon with the lab's usual configuration. Order the `gpu` or `off` fixture before it."""
    return new_daemon()


def _failed(request) -> bool:
    report = request.node.stash.get(REPORT, {}).get("call")
    return report is not None and report.failed


def pytest_collection_modifyitems(config, items):
    """One of several labs beside each other takes every n-th test."""
    number, labs = (int(part) for part in os.environ.get("LAB_SHARD", "1/1").split("/"))
    mine = items[number - 1::labs]
    config.stash[COUNT] = len(mine)
    items[:] = mine


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    stats = {name: len(terminalreporter.stats.get(name, [])) for name in ("passed", "failed", "error", "skipped")}
    total = config.stash.get(COUNT, 0)
    ran = stats["passed"] + stats["failed"]
    terminalreporter.write_line(f"lab: {ran} of {total} tests ran, {stats['passed']} passed, {stats['failed']} failed, "
                                f"{stats['error']} errors, {stats['skipped']} skipped")
    terminalreporter.write_line(f"{stats['passed']} passed, {stats['failed'] + stats['error']} failed")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter.stats.get("skipped") and session.exitstatus == 0:
        session.exitstatus = 1

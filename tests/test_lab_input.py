"""What a lab refuses, in one sentence that says what to do."""

import os

import pytest
from labs import WITHOUT_PRIVILEGES, require_lab, shoal

from shoal.errors import ShoalError
from shoal.lab import Lab
from shoal.lab.owner import owner_is_gone, owner_tag
from shoal.lab.units import parse_delay, parse_rate, show_rate


@pytest.mark.parametrize(
    ("text", "bits"),
    [("20mbit", 20_000_000), ("1.5 Gbit", 1_500_000_000), ("8kbit", 8_000), (".5mbit", 500_000)],
)
def test_a_rate_is_a_number_and_a_unit(text, bits):
    assert parse_rate(text) == bits


@pytest.mark.parametrize(("text", "seconds"), [("25ms", 0.025), ("500us", 0.0005), ("1s", 1.0)])
def test_a_delay_is_a_number_and_a_unit(text, seconds):
    assert parse_delay(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("20mbits", "unknown unit; the units are bit, kbit, mbit, gbit; did you mean 'mbit'"),
        ("20", "has no unit; write 20mbit"),
        ("fast", "is not a number with a unit"),
        ("-3mbit", "is not a number with a unit"),
        ("nan mbit", "is not a number with a unit"),
        ("", "is not a number with a unit"),
        ("100bit", "cannot be shaped"),
        ("0mbit", "cannot be shaped"),
        ("200gbit", "cannot be shaped"),
    ],
)
def test_a_rate_that_makes_no_sense_is_refused(text, told):
    with pytest.raises(ShoalError, match=told):
        parse_rate(text)


@pytest.mark.parametrize("text", ["5", "5min", "soon", "11s"])
def test_a_delay_that_makes_no_sense_is_refused(text):
    with pytest.raises(ShoalError, match="delay"):
        parse_delay(text)


def test_rates_are_shown_in_the_largest_unit_that_fits():
    assert [show_rate(rate) for rate in (0, 900, 19_300_000, 2e9)] == [
        "0 bit", "900 bit", "19.3 mbit", "2 gbit",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hosts": 0}, "from 1 to 250 hosts, not 0"),
        ({"hosts": -2}, "from 1 to 250 hosts, not -2"),
        ({"hosts": 251}, "from 1 to 250 hosts"),
        ({"cpu": 0.0}, "CPU quota is from 0.01"),
        ({"cpu": 1e6}, "CPU quota is from 0.01"),
        ({"cpu": float("nan")}, "CPU quota is from 0.01"),
        ({"link": "20mb"}, "unknown unit"),
        ({"delay": "20min"}, "unknown unit"),
    ],
)
def test_a_lab_that_makes_no_sense_is_refused_before_anything_is_made(options, told):
    with pytest.raises(ShoalError, match=told):
        Lab(**options)


def test_a_bad_option_on_the_command_line_is_one_sentence():
    done = shoal("lab", "run", "--hosts", "0", "--", "true")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "shoal: error: a lab has from 1 to 250 hosts, not 0\n"


@pytest.mark.parametrize("words", [[], ["--"], ["--hosts", "2", "--"]])
def test_a_lab_without_a_command_is_told_how_to_give_one(words):
    done = shoal("lab", "run", *words)
    assert done.returncode == 1 and "say `shoal lab run -- COMMAND`" in done.stderr


def test_the_commands_own_options_are_its_own_with_and_without_two_dashes():
    require_lab()
    for dashes in (["--"], []):
        done = shoal("lab", "run", "--hosts", "1", *dashes, "echo", "--hosts", "--", "-x")
        assert (done.returncode, done.stdout) == (0, "--hosts -- -x\n"), done.stderr


def test_without_ip_and_tc_the_package_is_named(tmp_path):
    done = shoal("lab", "run", "--", "true", env=os.environ | {"PATH": str(tmp_path)})
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "`ip` and `tc` cannot be found; install the package iproute2" in done.stderr


def test_without_permission_the_way_to_have_it_is_told():
    require_lab()
    done = shoal("lab", "run", "--", "true", before=WITHOUT_PRIVILEGES)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "may not make network namespaces" in done.stderr
    assert "`unshare -Urnm` before the command" in done.stderr


def test_a_delay_without_a_tun_device_is_refused_with_that_reason():
    require_lab(delay="1ms")
    hide = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    done = shoal("lab", "run", "--delay", "5ms", "--", "true", before=hide)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "(/dev/net/tun: No such file or directory)" in done.stderr
    assert "leave the delay out" in done.stderr


def test_an_unknown_command_is_refused_before_it_is_started():
    require_lab()
    done = shoal("lab", "run", "--", "no-such-command")
    assert done.returncode == 1
    assert done.stderr == "shoal: error: there is no command 'no-such-command'\n"


def test_an_owner_is_gone_only_when_that_is_certain():
    space, pid, start, number = owner_tag().removeprefix("shoal-lab-").split("-")
    assert not owner_is_gone(owner_tag())
    assert owner_is_gone(
        f"shoal-lab-{space}-{pid}-{int(start) + 1}-{number}"
    )  # its number is used again
    assert owner_is_gone(f"shoal-lab-{space}-{2**22 + 1}-{start}-{number}")
    assert not owner_is_gone(
        f"shoal-lab-{int(space) + 1}-{2**22 + 1}-{start}-{number}"
    )  # not ours to see
    assert not owner_is_gone("shoal-lab-of-mine")

"""systemd units, nginx's files and the Kubernetes manifests agree with the programs that they start."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from compositor.__main__ import app as compositor
from compositor.queue import QUEUES
from gateway.__main__ import app as gateway
from scripts.env_example import variables
from tests.support.topology import TEMPORARY

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "deploy"
UNITS = sorted((FOLDER / "systemd").glob("*.service"))
KNOWN = {variable.name for variable in variables()}
PROGRAMS = {"gateway": gateway, "compositor": compositor}
LISTENING = sorted((FOLDER / "nginx").glob("listen-*.conf"))


def manifests(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / "kubernetes" / name).read_text(encoding="utf-8")
    return [each for each in yaml.safe_load_all(text) if each]


def pods() -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for each in manifests("igen.yaml") if "template" in each.get("spec", {})]


def starts(module: str, command: str, *options: str) -> None:
    """The program knows this command and these options."""
    answer = CliRunner().invoke(PROGRAMS[module], [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert answer.exit_code == 0, answer.output
    for option in options:
        assert not option.startswith("--") or option in answer.output


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_sound(unit: Path, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("no systemd-analyze here")
    for each in (FOLDER / "systemd").iterdir():
        text = each.read_text().replace("/opt/igen/.venv/bin/python", sys.executable)
        (tmp_path / each.name).write_text(text.replace("/opt/igen", str(ROOT)))
    name = unit.name.replace("@.", "@8000.")
    (tmp_path / name).write_text((tmp_path / unit.name).read_text())
    answer = subprocess.run(
        [program, "verify", "--man=no", str(tmp_path / name)], capture_output=True, text=True, check=False
    )
    about_ours = [line for line in answer.stderr.splitlines() if "igen" in line]
    assert about_ours == []


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_there_is(unit: Path) -> None:
    text = unit.read_text()
    (line,) = re.findall(r"^ExecStart=/opt/igen/\.venv/bin/python -m (.+)$", text, re.MULTILINE)
    words = line.split()
    assert (ROOT / words[0] / "__main__.py").is_file()
    if words[1:]:
        starts(*words)
    assert set(re.findall(r"\bIGEN_[A-Z_]*[A-Z]\b", text)) <= KNOWN
    assert "EnvironmentFile=/etc/igen/igen.env" in text
    assert "User=igen" in text


@pytest.mark.parametrize("listening", LISTENING, ids=lambda path: path.stem)
def test_nginx_takes_its_configuration(listening: Path, tmp_path: Path) -> None:
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    assert program, "nginx is not installed: sudo apt-get install -y nginx-light"
    (tmp_path / "nginx.conf").write_text((FOLDER / "nginx" / "nginx.conf").read_text())
    text = (FOLDER / "nginx" / "igen.conf").read_text()
    (tmp_path / "igen.conf").write_text(text.replace("/var/log/nginx/", f"{tmp_path}/"))
    (tmp_path / "listen.conf").write_text(listening.read_text())
    places = "".join(f"{each}_temp_path {tmp_path}/{each};\n" for each in TEMPORARY)
    (tmp_path / "upstream.conf").write_text(places + (FOLDER / "nginx" / "upstream-host.conf").read_text())
    if "ssl" in listening.read_text():
        (tmp_path / "tls").mkdir()
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=igen"]
        files = ["-keyout", str(tmp_path / "tls/privkey.pem"), "-out", str(tmp_path / "tls/fullchain.pem")]
        subprocess.run([*command, *files], check=True, capture_output=True)
    command = [program, "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-g", f"pid {tmp_path}/pid;"]
    # systemd gives a program a socket of its journal for standard output, and /dev/stdout cannot be opened then
    journal, output = socket.socketpair()
    with journal, output:
        answer = subprocess.run(command, stdout=output.fileno(), stderr=subprocess.PIPE, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "warn" not in answer.stderr


def test_no_location_of_nginx_loses_the_headers_of_its_server() -> None:
    text = (FOLDER / "nginx" / "igen.conf").read_text()
    for location in re.findall(r"location [^{]*\{([^}]*)\}", text):
        assert "proxy_set_header" not in location


def test_pods_have_no_rights_and_no_service_links() -> None:
    assert len(pods()) == 5
    for pod in pods():
        assert pod["enableServiceLinks"] is False, "igen-inference's would set IGEN_INFERENCE_PORT"
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"] for volume in pod["volumes"]}
            assert mounts - volumes <= {"models"}


def test_pods_start_commands_that_there_are() -> None:
    for pod in pods():
        for container in pod["containers"]:
            if "command" not in container:
                assert container["args"] == ["server"]
                continue
            assert container["command"][:2] == ["python", "-m"]
            starts(*container["command"][2:])


def test_the_configuration_names_variables_that_there_are() -> None:
    (settings,) = [each["data"] for each in manifests("igen.yaml") if each["kind"] == "ConfigMap"]
    assert set(settings) <= KNOWN


def test_selectors_select() -> None:
    labels = [each["spec"]["template"]["metadata"]["labels"] for each in manifests("igen.yaml") if pods_of(each)]
    for each in manifests("igen.yaml"):
        if each["kind"] == "Service":
            assert each["spec"]["selector"] in labels
        elif each["kind"] in ("Deployment", "StatefulSet"):
            assert each["spec"]["selector"]["matchLabels"] == each["spec"]["template"]["metadata"]["labels"]


def pods_of(manifest: dict[str, Any]) -> bool:
    return "template" in manifest.get("spec", {})


def test_workers_are_scaled_on_queues_that_there_are() -> None:
    (scaled,) = [each for each in manifests("keda.yaml") if each["kind"] == "ScaledObject"]
    names = {trigger["metadata"]["listName"] for trigger in scaled["spec"]["triggers"]}
    assert names <= {f"rq:queue:{name}" for name in QUEUES}
    assert scaled["spec"]["scaleTargetRef"]["name"] in {each["metadata"]["name"] for each in manifests("igen.yaml")}


def test_the_ingress_leaves_metrics_inside() -> None:
    (ingress,) = [each for each in manifests("igen.yaml") if each["kind"] == "Ingress"]
    paths = [each for rule in ingress["spec"]["rules"] for each in rule["http"]["paths"]]
    assert ("/", "Prefix") not in [(each["path"], each["pathType"]) for each in paths]
    assert "/metrics" not in [each["path"] for each in paths]

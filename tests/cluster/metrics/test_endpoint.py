"""The endpoint over real HTTP: what it exposes, to whom, and that one scrape is of one moment."""

import gzip
import http.client
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import cache

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pimserve.cluster.base.rpc.security import TlsFiles
from pimserve.cluster.metrics import endpoint
from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.run_metrics import metrics_of
from pimserve.cluster.scenario.document import load_scenario
from pimserve.cluster.scenario.prepared import prepare
from pimserve.errors import InputError

pytestmark = pytest.mark.server

LOCAL = "127.0.0.1:0"
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def run():
    return metrics_of(prepare(load_scenario(None, ["cluster.replicas=2", "slo.ttft_s=0.3"])), 'odd "id" \\ here')


def get(address, path="/metrics", *, scheme="http", context=None, **headers):
    request = urllib.request.Request(f"{scheme}://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return answer.read().decode()


def status(address, path="/metrics", **options):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(address, path, **options)
    caught.value.close()
    return caught.value.code


def test_both_formats_hold_every_family(run):
    with exposing(EndpointOptions(LOCAL), lambda: [run]) as address:
        plain = {family.name for family in text_string_to_metric_families(get(address))}
        text = get(address, Accept="application/openmetrics-text; version=1.0.0")
    assert text.endswith("# EOF\n")
    parsed = {family.name: family for family in openmetrics.text_string_to_metric_families(text)}
    there = {family for family in FAMILIES if run.layout.keys[family.name]}
    assert {family.name.removesuffix("_total").removesuffix("_info") for family in there} == set(parsed)
    assert len(plain) == len(there)
    (info,) = parsed["pimserve_run"].samples
    assert info.labels["run_id"] == 'odd "id" \\ here'


def test_promtool_has_nothing_to_say(run):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    with exposing(EndpointOptions(LOCAL), lambda: [run]) as address:
        text = get(address)
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_names_of_vllm(run):
    with exposing(EndpointOptions(LOCAL), lambda: [run]) as address:
        families = {family.name: family for family in text_string_to_metric_families(get(address, "/metrics/vllm"))}
    waiting = families["vllm:num_requests_waiting"].samples
    assert [(sample.labels["model_name"], sample.labels["engine"]) for sample in waiting] == [
        ("mixtral-8x7b", "0"),
        ("mixtral-8x7b", "1"),
    ]
    for name in ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:time_to_first_token_seconds"):
        assert families[name].samples
    assert {sample.labels["finished_reason"] for sample in families["vllm:request_success"].samples} == {"stop"}


def test_pools_put_together_keep_their_own_series_in_names_of_vllm():
    many = "cluster.pools={prefill: {replicas: 4}, decode: {replicas: 5}}"
    scenario = load_scenario(None, [many])
    both = [metrics_of(prepare(scenario), name) for name in ("one", "other")]
    assert all(metrics.layout.merged for metrics in both)
    with exposing(EndpointOptions(LOCAL), lambda: both) as address:
        lines = [line.rpartition(" ")[0] for line in get(address, "/metrics/vllm").splitlines() if line[0] != "#"]
    assert len(set(lines)) == len(lines)
    assert {(role, run) for role in ("prefill", "decode") for run in ("one", "other")} == {
        tuple(re.search(rf'{label}="(\w+)"', line)[1] for label in ("role", "run_id")) for line in lines
    }


def test_the_cache_of_vllm_has_its_size_from_the_start(run):
    with exposing(EndpointOptions(LOCAL), lambda: [run]) as address:
        families = {family.name: family for family in text_string_to_metric_families(get(address, "/metrics/vllm"))}
    for sample, blocks in zip(
        families["vllm:cache_config_info"].samples, run.values["pimserve_kv_cache_blocks"], strict=True
    ):
        assert (sample.labels["num_gpu_blocks"], sample.labels["block_size"]) == (f"{blocks:.0f}", "16")
        assert blocks > 0


OPENMETRICS = "application/openmetrics-text; version=1.0.0"
PLAIN = "text/plain; version=0.0.4"
PROMETHEUS_2_42 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize("path", ["/metrics", "/metrics/vllm"])
@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", PLAIN),
        ("text/plain;version=0.0.4", PLAIN),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=1.0.0"),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", PLAIN),
        ("application/openmetrics-text;version=none", PLAIN),
        ("application/openmetrics-text;version=2.7.9", PLAIN),
        ("application/openmetrics-text;version=2.7.9,text/plain;version=1.0.0;q=0.5", "text/plain; version=1.0.0"),
        ("text/html,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4", PLAIN),
        ("application/openmetrics-text;version=1.0.0; q=0,*/*", PLAIN),
        ("text/plain;q=0.2,Application/OpenMetrics-Text;version=1.0.0;q=0.9", OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        (PROMETHEUS_2_42, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
    ],
)
def test_the_format_is_what_the_scraper_takes(run, path, accept, kind):
    with exposing(EndpointOptions(LOCAL), lambda: [run]) as address:
        headers = {"Accept": accept, "Accept-Encoding": "gzip"}
        request = urllib.request.Request(f"http://{address}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            packed, headers = answer.read(), answer.headers
        text = get(address, path, Accept=accept)
        as_ever = get(address, path)
    assert headers["Content-Type"].removesuffix("; charset=utf-8") == kind
    assert (headers["Content-Encoding"], headers["Vary"]) == ("gzip", "Accept, Accept-Encoding")
    assert gzip.decompress(packed).decode() == text
    assert text.endswith("# EOF\n") == (kind == OPENMETRICS)
    assert samples_of(text, in_openmetrics=kind == OPENMETRICS) == samples_of(as_ever, in_openmetrics=False)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip;q=0", None),
        ("gzip; q=0.0, identity", None),
        ("*;q=0.1,GZIP;q=0.5", "gzip"),
        ("deflate, gzip;q=odd", "gzip"),
    ],
)
def test_what_a_scraper_refuses_it_does_not_get(accepted, encoding):
    with exposing(EndpointOptions(LOCAL), list) as address:
        request = urllib.request.Request(f"http://{address}/metrics", headers={"Accept-Encoding": accepted})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.headers["Content-Encoding"] == encoding


@cache  # whoever takes a format gets the same text, which takes long to parse
def samples_of(text, *, in_openmetrics):
    """What an exposition says."""
    parse = openmetrics.text_string_to_metric_families if in_openmetrics else text_string_to_metric_families
    return samples_in(parse(text))


def samples_in(families):
    """Values by name and labels."""
    samples = [sample for family in families for sample in family.samples]
    values = {(sample.name, *sorted(sample.labels.items())): sample.value for sample in samples}
    assert len(values) == len(samples)
    return values


def test_no_runs_are_no_error():
    with exposing(EndpointOptions(LOCAL), list) as address:
        assert get(address) == get(address, "/metrics/vllm") == ""
        assert "healthy" in get(address, "/-/healthy")
        assert "/metrics/vllm" in get(address, "/")
        assert status(address, "/nothing") == 404
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", "/metrics", "{}")
        with connection.getresponse() as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET")
        connection.close()


def test_a_token_is_asked_for():
    with exposing(EndpointOptions(LOCAL, TOKEN), list) as address:
        assert get(address, Authorization=f"Bearer {TOKEN}") == get(address, Authorization=f"bearer {TOKEN}") == ""
        assert get(address, "/-/healthy") == "healthy\n"
        for headers in (
            {},
            {"Authorization": TOKEN},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": "Bearer é"},
        ):
            encoded = {key: value.encode("latin-1").decode("latin-1") for key, value in headers.items()}
            assert status(address, **encoded) == 401


def test_tls_with_and_without_a_certificate_of_the_scraper(tmp_path):
    authority = trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("scraper@example.org")
    cert, key, ca = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    server.cert_chain_pems[0].write_to_path(cert)
    server.private_key_pem.write_to_path(key)
    authority.cert_pem.write_to_path(ca)
    context = ssl.create_default_context(cafile=str(ca))
    with exposing(EndpointOptions(LOCAL, tls=TlsFiles(cert, key)), list) as address:
        assert get(address, "/-/healthy", scheme="https", context=context) == "healthy\n"
    with exposing(EndpointOptions(LOCAL, tls=TlsFiles(cert, key, ca)), list) as address:
        with pytest.raises((ssl.SSLError, OSError)):
            get(address, "/-/healthy", scheme="https", context=context)
        client.configure_cert(context)
        assert get(address, "/-/healthy", scheme="https", context=context) == "healthy\n"


def test_options_that_will_not_do(tmp_path):
    refused = {
        "elsewhere": (EndpointOptions("0.0.0.0:0"), "--metrics-token-file or --metrics-tls-client-ca"),
        "nowhere": (EndpointOptions("9464"), "must be HOST:PORT"),
        "half": (EndpointOptions(LOCAL, tls=TlsFiles(cert=tmp_path / "none")), "TLS needs both"),
        "gone": (EndpointOptions(LOCAL, tls=TlsFiles(tmp_path / "none", tmp_path / "none")), "cannot be used"),
    }
    for options, message in refused.values():
        with pytest.raises(InputError, match=message), exposing(options, list):
            pass
    with (
        exposing(EndpointOptions(LOCAL), list) as address,
        pytest.raises(InputError, match="cannot be used"),
        exposing(EndpointOptions(address), list),
    ):
        pass


def test_it_may_listen_on_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with exposing(EndpointOptions("[::1]:0"), list) as address:
        assert get(address, "/-/healthy") == "healthy\n"


def test_many_scrapes_at_once_see_one_moment_each(run):
    moment = run.copy()
    over = threading.Event()

    def runs():
        return [moment.copy()]

    def change():
        while not over.wait(0.0001):
            moment.values["pimserve_requests_running"] += 1

    wrong = []

    def scrape(address):
        for _ in range(4):
            running = re.findall(r"^pimserve_requests_running\{.*\} (.+)$", get(address), re.MULTILINE)
            if len(running) != 2 or len(set(running)) != 1:
                wrong.append(running)

    with exposing(EndpointOptions(LOCAL), runs) as address:
        changing = threading.Thread(target=change)
        scraping = [threading.Thread(target=scrape, args=(address,)) for _ in range(8)]
        for thread in (changing, *scraping):
            thread.start()
        for thread in scraping:
            thread.join()
        over.set()
        changing.join()
    assert not wrong


def test_a_scraper_that_does_not_read_is_no_news(run, monkeypatch, capfd):
    monkeypatch.setattr(endpoint._Handler, "timeout", 0.3)
    with exposing(EndpointOptions(LOCAL), lambda: [run] * 40) as address:  # more than sockets hold
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert slow.recv(9) == b"HTTP/1.0 "
            before = threading.active_count()
            until(lambda: threading.active_count() < before)
        assert "healthy" in get(address, "/-/healthy")
    assert capfd.readouterr().err == ""


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def test_what_goes_wrong_in_here_is_logged(caplog):
    def broken():
        raise ZeroDivisionError

    with exposing(EndpointOptions(LOCAL), broken) as address:
        assert status(address) == 500
    assert "metrics could not be exposed" in caplog.text


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    locked = serialization.BestAvailableEncryption(b"a passphrase")
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "key.pem").write_bytes(key.private_bytes(*pem, locked))
    trustme.CA().issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    code = (
        "import sys; from pathlib import Path\n"
        "from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing\n"
        "from pimserve.cluster.base.rpc.security import TlsFiles\n"
        f"files = TlsFiles(Path({str(tmp_path / 'cert.pem')!r}), Path({str(tmp_path / 'key.pem')!r}))\n"
        "with exposing(EndpointOptions('127.0.0.1:0', tls=files), list): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, input=""
    )
    assert "InputError: --metrics-tls-cert: certificate or key cannot be used" in done.stderr
    assert "pass phrase" not in done.stdout + done.stderr

"""The endpoint over real HTTP: what it exposes, to whom, and that one scrape is of one moment."""

import http.client
import json
import shutil
import ssl
import subprocess
import threading
import urllib.error
import urllib.request

import pytest
import trustme
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from pimserve.cluster.metrics.endpoint import EndpointOptions, exposing
from pimserve.cluster.metrics.families import FAMILIES
from pimserve.cluster.metrics.state import metrics_of
from pimserve.cluster.scenario import load_scenario
from pimserve.cluster.service.security import TlsFiles
from pimserve.errors import InputError

LOCAL = "127.0.0.1:0"
TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def run():
    return metrics_of(load_scenario(None, ["cluster.replicas=2", "slo.ttft_s=0.3"]), 'odd "id" \\ here')


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


def test_no_runs_are_no_error():
    with exposing(EndpointOptions(LOCAL), list) as address:
        assert get(address) == get(address, "/metrics/vllm") == ""
        assert "healthy" in get(address, "/-/healthy")
        assert "/metrics/vllm" in get(address, "/")
        assert status(address, "/nothing") == 404
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", "/metrics", json.dumps({}))
        assert connection.getresponse().status == 405
        connection.close()


def test_a_token_is_asked_for():
    with exposing(EndpointOptions(LOCAL, TOKEN), list) as address:
        assert get(address, Authorization=f"Bearer {TOKEN}") == ""
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


def test_many_scrapes_at_once_see_one_moment_each(run):
    moment = run.copy()
    over = threading.Event()

    def runs():
        return [moment.copy()]

    def change():
        while not over.is_set():
            moment.values["pimserve_requests_running"] += 1

    wrong = []

    def scrape(address):
        for _ in range(10):
            found = [
                sample.value
                for family in text_string_to_metric_families(get(address))
                if family.name == "pimserve_requests_running"
                for sample in family.samples
            ]
            if len(set(found)) != 1:
                wrong.append(found)

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

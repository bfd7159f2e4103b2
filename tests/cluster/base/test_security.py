"""Where a server may listen, and what it takes for a token or a certificate."""

import pytest
import trustme

from pimserve.cluster.base.rpc.security import (
    TlsFiles,
    bears,
    channel_credentials,
    check_listen,
    read_token,
    server_credentials,
)
from pimserve.errors import InputError

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize("address", ["127.0.0.1:50051", "127.8.8.8:0", "localhost:1", "[::1]:50051"])
def test_this_machine_needs_no_protection(address):
    assert check_listen(address, protected=False, insecure=False) == address


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "192.168.1.4:80", "example.org:80"])
def test_others_do(address):
    with pytest.raises(InputError, match=r"--token-file or --tls-client-ca .* --insecure"):
        check_listen(address, protected=False, insecure=False)
    assert check_listen(address, protected=True, insecure=False) == address
    assert check_listen(address, protected=False, insecure=True) == address


@pytest.mark.parametrize("address", ["", "50051", ":50051", "127.0.0.1", "127.0.0.1:", "127.0.0.1:99999", "h:１"])
def test_what_is_no_address(address):
    with pytest.raises(InputError, match=r"^--listen: must be HOST:PORT"):
        check_listen(address, protected=True, insecure=True)


def test_tokens_come_from_a_file_or_from_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("  0123456789abcdef\n")
    assert read_token(file) == "0123456789abcdef"
    monkeypatch.setenv("PIMSERVE_TOKEN", "fedcba9876543210")
    assert read_token(None) == "fedcba9876543210"
    assert read_token(file) == "0123456789abcdef"
    monkeypatch.delenv("PIMSERVE_TOKEN")
    assert read_token(None) is None


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_a_token_file_that_others_may_read_or_write_is_told_of(tmp_path, caplog, mode):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    assert read_token(file) == TOKEN
    assert [record.getMessage() for record in caplog.records] == [
        f"{file} is open to other users (mode {mode:04o}): chmod 600 makes it private"
    ]


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_private_token_file_is_not(tmp_path, caplog, mode):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(mode)
    assert read_token(file) == TOKEN
    assert not caplog.records


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_of_a_token_is_written_in_any_case(scheme):
    assert bears(f"{scheme} {TOKEN}".encode(), TOKEN)
    assert bears(f"{scheme}  {TOKEN}".encode(), TOKEN)
    for wrong in (
        f"{scheme} {TOKEN}x",
        f"{scheme} {TOKEN.upper()}",
        f"{scheme}{TOKEN}",
        f"{scheme} ",
        f"x{scheme} {TOKEN}",
    ):
        assert not bears(wrong.encode(), TOKEN)


@pytest.mark.parametrize("header", ["", TOKEN, f" {TOKEN}", f"Basic {TOKEN}", f"Bearer\t{TOKEN}", "Bearer é"])
def test_what_carries_no_token(header):
    assert not bears(header.encode(), TOKEN)


@pytest.mark.parametrize("text", ["", "short", "has a blank in the middle", "ümläute sind nicht erlaubt"])
def test_what_is_no_token(tmp_path, text):
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(InputError, match="16 to 1000 visible ASCII characters"):
        read_token(file)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_token(tmp_path / "none")


def test_tls_needs_whole_sets_of_files(tmp_path):
    authority = trustme.CA()
    ca, cert, key = tmp_path / "ca", tmp_path / "cert", tmp_path / "key"
    authority.cert_pem.write_to_path(ca)
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)

    assert server_credentials(TlsFiles()) is None
    assert channel_credentials(TlsFiles()) is None
    assert server_credentials(TlsFiles(cert, key, ca)) is not None
    assert channel_credentials(TlsFiles(cert, key, ca)) is not None
    with pytest.raises(InputError, match="both --tls-cert and --tls-key"):
        server_credentials(TlsFiles(cert=cert))
    with pytest.raises(InputError, match="both --tls-cert and --tls-key"):
        server_credentials(TlsFiles(ca=ca))
    with pytest.raises(InputError, match="both --cert and --key"):
        channel_credentials(TlsFiles(ca=ca, key=key))
    with pytest.raises(InputError, match="has no PRIVATE KEY in PEM form"):
        server_credentials(TlsFiles(cert=cert, key=cert))

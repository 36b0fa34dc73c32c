"""A server on real sockets, with a rule in place of a network."""

import pytest

SIGNATURES = ("serving_default", "segment_volume", "segment_png")


@pytest.fixture(scope="session")
def rule_models(tmp_path_factory):
    """The rule with all signatures, and with only the signature for windows."""
    from helpers.rule import save_rule

    root = tmp_path_factory.mktemp("models")
    whole = save_rule(root / "whole", [*SIGNATURES, *(f"{name}_to_png" for name in SIGNATURES[1:]), "describe"])
    return {
        "gitseg": {1: whole, 2: whole},
        "windows": {1: save_rule(root / "windows", SIGNATURES[:1])},
    }


@pytest.fixture(scope="session")
def running(rule_models):
    from helpers.server import serve

    with serve(rule_models) as started:
        yield started


@pytest.fixture
def server(running):
    """The running server, without faults or recorded requests."""
    serving = running.serving
    serving.requests.clear()
    serving.as_content = False
    yield running
    serving.faults.codes.clear()
    serving.faults.metadata_codes.clear()
    serving.faults.seconds = 0.0
    serving.faults.threads = None


@pytest.fixture(params=["grpc", "rest"])
def url(request, server):
    """url(name) is the address of a model on the running server, for gRPC or REST."""
    return server.grpc_url if request.param == "grpc" else server.rest_url

"""A server over real sockets, with a rule in place of a network."""

import pytest

SIGNATURES = ("serving_default", "segment_volume", "segment_png")


@pytest.fixture(scope="session")
def rule_models(tmp_path_factory):
    """The rule, and one with the signature for windows alone."""
    from rule import save_rule

    root = tmp_path_factory.mktemp("models")
    whole = save_rule(root / "whole", [*SIGNATURES, *(f"{name}_to_png" for name in SIGNATURES[1:])])
    return {
        "gitseg": {1: whole, 2: whole},
        "windows": {1: save_rule(root / "windows", SIGNATURES[:1])},
    }


@pytest.fixture(scope="session")
def running(rule_models):
    from server import serve

    with serve(rule_models) as started:
        yield started


@pytest.fixture
def server(running):
    """The running server, with no faults and no requests yet."""
    serving = running.serving
    serving.requests.clear()
    serving.as_content = False
    yield running
    serving.faults.codes.clear()
    serving.faults.metadata_codes.clear()
    serving.faults.seconds = 0.0


@pytest.fixture(params=["grpc", "rest"])
def url(request, server):
    """url(name) is a model's address on the running server, over gRPC and over REST."""
    return server.grpc_url if request.param == "grpc" else server.rest_url

"""What an operator exported for one role reaches no other."""

from gridtokenx.lab.testnet.processes import environment_for_all


def test_only_variables_that_mean_the_same_to_all_are_inherited() -> None:
    given = {
        "PATH": "/bin",
        "GTX_LISTEN": "127.0.0.1:1",
        "GTX_HTTP": "127.0.0.1:2",
        "GTX_PASSWORD": "hush",
        "GTX_CONFIG": "x.toml",
        "GTX_LOG_LEVEL": "debug",
        "GTX_CRASH_AT": "node.ready",
    }
    assert environment_for_all(given) == {
        "PATH": "/bin",
        "GTX_LOG_LEVEL": "debug",
        "GTX_CRASH_AT": "node.ready",
    }
